"""First-layer filters that whiten image patches: the `whitening` initialiser.

A network that starts with them need not learn first what neighbouring pixels have in common. Page 2018 ("How to train
your ResNet"), Jordan 2024, arXiv:2404.00498, section 3.2; each filter has its negative beside it because of the ReLU.
"""

from __future__ import annotations

import numpy as np

from pipeline.dataset.normalisation import Normalisation

#: Images that are enough to take the patches from.
IMAGES = 5000

_STRIDE = 4

#: Added to the variances, so that directions with next to none are not blown up to noise; by the side of a patch.
_EPSILON = {2: 5e-4, 3: 1e-2}


def filters(images: np.ndarray, norm: Normalisation, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Filters for a convolution of `shape` (count, 3, side, side), sides 2 or 3; as many as there are, float32.

    They are pairs of a filter and its negative, the strongest first; one pair for each dimension of a patch, so 24
    filters of side 2 or 54 of side 3. The response to the patches of (N, 3, H, W) uint8 images has variance 1 at most.
    """
    count, _, side, _ = shape
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(2, 3))[:, :, ::_STRIDE, ::_STRIDE]  # type: ignore[call-overload]
    values = norm.apply(windows.reshape(*images.shape[:2], -1, side)).reshape(windows.shape)
    patches = values.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * side * side).astype(np.float64)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    strongest = (directions / np.sqrt(np.maximum(variances, 0) + _EPSILON[side])).T[::-1][: count // 2]
    pairs = np.stack([strongest, -strongest], axis=1)
    return pairs.reshape(-1, 3, side, side).astype(np.float32)
