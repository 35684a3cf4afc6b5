"""The `whitening` initializer: first-layer filters that whiten image patches.

The network then need not first learn how neighbouring pixels correlate. Each filter is paired with its negative because
of the ReLU. Page 2018 ("How to train your ResNet"); Jordan 2024, arXiv:2404.00498, section 3.2.
"""

from __future__ import annotations

import numpy as np

from pipeline.dataset.normalisation import Normalisation

#: Number of images that provides enough patches.
IMAGES = 5000

_STRIDE = 4

#: Added to the variances, by side of a patch, so that directions with almost none are not amplified to noise.
_EPSILON = {2: 5e-4, 3: 1e-2}


def filters(images: np.ndarray, norm: Normalisation, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Compute float32 filters for a convolution of `shape` (count, 3, side, side), side 2 or 3.

    Returns pairs of a filter and its negative, strongest first, one pair for each dimension of a patch: at most 24
    filters of side 2 or 54 of side 3. Their response to patches of (N, 3, H, W) uint8 images has variance at most 1.
    """
    count, _, side, _ = shape
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(2, 3))[:, :, ::_STRIDE, ::_STRIDE]  # type: ignore[call-overload]
    values = norm.apply(windows.reshape(*images.shape[:2], -1, side)).reshape(windows.shape)
    patches = values.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * side * side).astype(np.float64)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    strongest = (directions / np.sqrt(np.maximum(variances, 0) + _EPSILON[side])).T[::-1][: count // 2]
    pairs = np.stack([strongest, -strongest], axis=1)
    return pairs.reshape(-1, 3, side, side).astype(np.float32)
