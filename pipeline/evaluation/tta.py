"""Test-time augmentation: views of an image over which predictions are averaged. Pure array operations, no MXNet.

The six views and their weights are those of K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024): half
of the weight is on the image and its mirror image, half on both shifted by one pixel, down-right and up-left. The
border is filled as in training (`augmentation.padding`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

#: Weight of each view in the average, for each number of views that a configuration may ask for.
WEIGHTS: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (0.5, 0.5), 6: (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)}

#: Rows and columns by which each pair (image, mirror image) is shifted, in pixels.
_SHIFTS = (0, -1, 1)


def views(images: np.ndarray, count: int, padding: str) -> Iterator[np.ndarray]:
    """Yield the first `count` views of (n, 3, H, W) images, in which black is 0; `padding` is `zero` or `reflect`."""
    mode: Literal["reflect", "constant"] = "reflect" if padding == "reflect" else "constant"
    pad = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode) if count > 2 else images
    height, width = images.shape[2:]
    for shift in _SHIFTS[: (count + 1) // 2]:
        shifted = images if shift == 0 else pad[:, :, 1 + shift : 1 + shift + height, 1 + shift : 1 + shift + width]
        yield shifted
        if count > 1:
            yield shifted[..., ::-1]


def average(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the weighted mean of the logits of all views, each (n, classes) float32."""
    if len(outputs) == 1:
        return outputs[0]
    weights = WEIGHTS[len(outputs)]
    return sum(np.float32(weight) * output for weight, output in zip(weights, outputs, strict=True))  # type: ignore[return-value]


def described(count: int) -> str:
    """Describe how a prediction over `count` views is made; empty for one view."""
    return {1: "", 2: "averaged with that of the mirror image", 6: "averaged over 6 views of the image"}[count]
