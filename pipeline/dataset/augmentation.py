"""Augmentation of whole batches: the random choices, and what they do to images in memory or on a device.

`augment` works on numpy arrays. `DeviceImages` does the same on the device that holds the images, for GPUs: a step
then sends a few hundred bytes of random choices in place of megabytes of pixels. The batches are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import Augmentation
from pipeline.dataset.normalisation import Normalisation
from pipeline.runtime import mxnet


@dataclass(frozen=True)
class Plan:
    """The random choices of one batch of n images. Made on the CPU, whatever device then changes the images."""

    #: (n,) indices into the data set's images.
    rows: np.ndarray
    #: (n,) booleans: which images are mirrored.
    flips: np.ndarray | None = None
    #: (2, n): first row and first column of each image's window in the padded image.
    shifts: np.ndarray | None = None
    #: (2, n): first row and first column of each image's blank square; may lie outside.
    holes: np.ndarray | None = None

    def split(self, parts: int) -> list[Plan]:
        """`parts` plans of consecutive images, the first ones longer if need be, as Gluon's `split_data` has it."""
        pieces = []
        for places in np.array_split(np.arange(len(self.rows)), parts):
            several = (None if value is None else value[..., places] for value in (self.flips, self.shifts, self.holes))
            pieces.append(Plan(self.rows[places], *several))
        return pieces


def augment(images: np.ndarray, plan: Plan, augmentation: Augmentation) -> np.ndarray:
    """Change (n, 3, H, W) uint8 images as planned: mirror, shift within a border, blank a square."""
    count, _, height, width = images.shape
    if plan.flips is not None:
        images = images.copy()
        images[plan.flips] = images[plan.flips][..., ::-1]
    pad = augmentation.pad_crop
    if plan.shifts is not None:
        border = ((0, 0), (0, 0), (pad, pad), (pad, pad))
        padded = np.pad(images, border, mode="reflect" if augmentation.padding == "reflect" else "constant")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))  # type: ignore[call-overload]
        tops, lefts = plan.shifts
        images = windows[np.arange(count), :, tops, lefts]
    if plan.holes is not None:
        images = images.copy()
        rows, columns = _blank(plan.holes, augmentation.cutout, height, width)
        hole = rows[:, None, :, None] & columns[:, None, None, :]
        images[np.broadcast_to(hole, images.shape)] = 0
    return images


def _blank(holes: np.ndarray, side: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, H) and (n, W) booleans: the rows and the columns of each image's blank square."""
    tops, lefts = holes[:, :, None]
    rows, columns = np.arange(height), np.arange(width)
    return (rows >= tops) & (rows < tops + side), (columns >= lefts) & (columns < lefts + side)


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
            rows, columns = _blank(plan.holes, self._augmentation.cutout, *images.shape[2:])
            rows, columns = self._put(rows[:, None, :, None]), self._put(columns[:, None, None, :])
            images = images * (1 - self._mx.nd.broadcast_mul(rows, columns))
        images = self._mx.nd.broadcast_mul(images, self._scale)
        return self._mx.nd.broadcast_add(images, self._shift)

    def _shifted(self, images: Any, shifts: np.ndarray) -> Any:
        """Each image's window of the padded images, whose pixels are numbered through."""
        nd, pad = self._mx.nd, self._augmentation.pad_crop
        count, channels, height, width = images.shape
        mode = "reflect" if self._augmentation.padding == "reflect" else "constant"
        padded = nd.pad(images, mode=mode, pad_width=(0, 0, 0, 0, pad, pad, pad, pad), constant_value=0)
        pixels = padded.transpose((0, 2, 3, 1)).reshape((-1, channels))
        row = width + 2 * pad
        first = (np.arange(count) * (height + 2 * pad) + shifts[0]) * row + shifts[1]
        window = np.arange(height)[:, None] * row + np.arange(width)
        numbers = nd.broadcast_add(self._put(first[:, None, None], "int32"), self._put(window[None], "int32"))
        return nd.take(pixels, numbers).transpose((0, 3, 1, 2))

    def _put(self, values: np.ndarray, dtype: str = "float32") -> Any:
        return self._mx.nd.array(values, ctx=self._context, dtype=dtype)
