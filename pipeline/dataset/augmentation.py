"""Augmentation of whole batches: the random choices, and their effect on images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config import Augmentation


@dataclass(frozen=True)
class Plan:
    """The random choices of one batch of n images."""

    #: (n,) indices into the data set's images.
    rows: np.ndarray
    #: (n,) booleans: which images are mirrored.
    flips: np.ndarray | None = None
    #: (2, n): first row and first column of each image's window in the padded image.
    shifts: np.ndarray | None = None
    #: (2, n): first row and first column of each image's blank square; may be out of bounds.
    holes: np.ndarray | None = None

    def part(self, number: int, parts: int) -> Plan:
        """Return part `number` of `parts`, of consecutive images; earlier parts may be longer, as in `split_data`."""
        indices = np.array_split(np.arange(len(self.rows)), parts)[number]
        changes = (None if value is None else value[..., indices] for value in (self.flips, self.shifts, self.holes))
        return Plan(self.rows[indices], *changes)


def augment(images: np.ndarray, plan: Plan, augmentation: Augmentation) -> np.ndarray:
    """Apply a plan to (n, 3, H, W) uint8 images: mirror, shift within a border, blank a square."""
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
        side, tops, lefts = augmentation.cutout, *plan.holes[:, :, None]
        rows, columns = np.arange(height), np.arange(width)
        inside = (rows >= tops) & (rows < tops + side), (columns >= lefts) & (columns < lefts + side)
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        images[np.broadcast_to(hole, images.shape)] = 0
    return images
