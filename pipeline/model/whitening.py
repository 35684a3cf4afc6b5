"""First-layer filters that whiten image patches: the `whitening` initialiser.

A network that starts with them need not learn first what neighbouring pixels have in common. Page 2018 ("How to train
your ResNet"), Jordan 2024, arXiv:2404.00498, section 3.2; each filter has its negative beside it because of the ReLU.
"""

from __future__ import annotations

import numpy as np

from pipeline.dataset.normalisation import Normalisation

#: Images that are enough to take the patches from.
IMAGES = 5000

_STRIDE, _SIDE = 4, 3

#: Added to the variances, so that directions with next to none are not blown up to noise.
_EPSILON = 1e-2


def filters(images: np.ndarray, norm: Normalisation, count: int) -> np.ndarray:
    """Up to `count` filters, (n, 3, 3, 3) float32: pairs of a filter and its negative, the strongest first.

    The response of a filter to the patches of (N, 3, H, W) uint8 images has variance 1 at most.
    There are at most 27 pairs, one for each dimension of a patch.
    """
    values = norm.apply(images)
    windows = np.lib.stride_tricks.sliding_window_view(values, (_SIDE, _SIDE), axis=(2, 3))  # type: ignore[call-overload]
    patches = windows[:, :, ::_STRIDE, ::_STRIDE].transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * _SIDE * _SIDE)
    patches = patches.astype(np.float64)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    strongest = (directions / np.sqrt(np.maximum(variances, 0) + _EPSILON)).T[::-1][: count // 2]
    pairs = np.stack([strongest, -strongest], axis=1)
    return pairs.reshape(-1, 3, _SIDE, _SIDE).astype(np.float32)
