"""The training images as uint8 on a device, gathered, augmented and normalised there.

For GPUs: a step then sends a few hundred bytes of random choices in place of megabytes of pixels. The same operations
as `batches.augment`, on the same choices, so the batches are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.config import Augmentation
from pipeline.dataset.batches import Normalisation, Plan
from pipeline.runtime import mxnet


class DeviceImages:
    """(N, 3, H, W) uint8 images that stay on one device."""

    def __init__(self, images: np.ndarray, augmentation: Augmentation, norm: Normalisation, context: Any) -> None:
        self._mx, self._context, self._augmentation = mxnet(), context, augmentation
        self._images = self._mx.nd.array(images, ctx=context, dtype="uint8")
        scale, shift = norm.factors()
        self._scale, self._shift = self._put(scale), self._put(shift)

    def batch(self, plan: Plan) -> Any:
        """The planned batch as an (n, 3, H, W) float32 NDArray on the device; does not wait for it."""
        images = self._mx.nd.take(self._images, self._put(plan.rows, "int32")).astype("float32")
        if plan.flips is not None:
            mirrored = self._mx.nd.reverse(images, axis=3)
            images = self._mx.nd.where(self._put(plan.flips), mirrored, images)
        if plan.shifts is not None:
            images = self._shifted(images, plan.shifts)
        if plan.holes is not None:
            images = images * self._outside(plan.holes, images.shape[2:])
        images = self._mx.nd.broadcast_mul(images, self._scale)
        return self._mx.nd.broadcast_add(images, self._shift)

    def _shifted(self, images: Any, shifts: np.ndarray) -> Any:
        """Each image's window of the zero-padded images: rows gathered first, then columns."""
        nd, pad = self._mx.nd, self._augmentation.pad_crop
        count, channels, height, width = images.shape
        padded = nd.pad(images, mode="constant", pad_width=(0, 0, 0, 0, pad, pad, pad, pad), constant_value=0)
        # Index arithmetic on the host: two small (n, size) arrays of indices into flattened rows and columns.
        numbers = np.arange(count)[:, None]
        rows = self._put(numbers * (height + 2 * pad) + shifts[0][:, None] + np.arange(height), "int32")
        by_row = padded.transpose((0, 2, 1, 3)).reshape((-1, channels * (width + 2 * pad)))
        images = nd.take(by_row, rows).reshape((count, height, channels, width + 2 * pad))
        columns = self._put(numbers * (width + 2 * pad) + shifts[1][:, None] + np.arange(width), "int32")
        by_column = images.transpose((0, 3, 1, 2)).reshape((-1, height * channels))
        return nd.take(by_column, columns).reshape((count, width, height, channels)).transpose((0, 3, 2, 1))

    def _outside(self, holes: np.ndarray, shape: tuple[int, int]) -> Any:
        """(n, 1, H, W) factors: 0 inside each image's blank square, 1 elsewhere."""
        size = self._augmentation.cutout
        rows, columns = (
            (np.arange(length) >= first[:, None]) & (np.arange(length) < first[:, None] + size)
            for length, first in zip(shape, holes, strict=True)
        )
        inside = self._mx.nd.broadcast_mul(self._put(rows[:, None, :, None]), self._put(columns[:, None, None, :]))
        return 1 - inside

    def _put(self, values: np.ndarray, dtype: str = "float32") -> Any:
        return self._mx.nd.array(values, ctx=self._context, dtype=dtype)
