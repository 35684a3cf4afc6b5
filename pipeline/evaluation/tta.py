"""Views of an image, over which predictions are averaged: the image, its mirror image, and both moved by one pixel.

Pure array operations, without MXNet. The set of six views and their weights are those of K. Jordan, "94% on CIFAR-10 in
3.29 Seconds on a Single GPU" (2024): half of the weight for the image and its mirror image in place, half for both
moved by one pixel, down-right and up-left. Beyond the border is what `augmentation.padding` put there in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

#: Weight of each view in the average, for the numbers of views that a configuration may ask for.
WEIGHTS: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (0.5, 0.5), 6: (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)}

#: Rows and columns by which each pair (image, mirror image) is moved, in pixels.
_SHIFTS = (0, -1, 1)


def views(images: np.ndarray, count: int, padding: str) -> Iterator[np.ndarray]:
    """The first `count` views of (n, 3, H, W) images, in which black is 0; `padding` is `zero` or `reflect`."""
    mode: Literal["reflect", "constant"] = "reflect" if padding == "reflect" else "constant"
    pad = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode) if count > 2 else images
    height, width = images.shape[2:]
    for shift in _SHIFTS[: (count + 1) // 2]:
        moved = images if shift == 0 else pad[:, :, 1 + shift : 1 + shift + height, 1 + shift : 1 + shift + width]
        yield moved
        if count > 1:
            yield moved[..., ::-1]


def average(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The weighted mean (n, classes) float32 of the logits of every view, each (n, classes)."""
    if len(outputs) == 1:
        return outputs[0]
    weights = WEIGHTS[len(outputs)]
    return sum(np.float32(weight) * output for weight, output in zip(weights, outputs, strict=True))  # type: ignore[return-value]


def described(count: int) -> str:
    """How a prediction over `count` views comes about, in words; empty for one view."""
    return {1: "", 2: "averaged with that of the mirror image", 6: "averaged over 6 views of the image"}[count]
