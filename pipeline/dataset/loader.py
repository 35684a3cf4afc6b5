"""The data loader: holds out validation images, and yields shuffled, augmented batches of the others.

The data set is memory-mapped and every operation acts on a whole batch. All randomness is a function of the seed and
the epoch or step, so training resumed in the middle of an epoch sees exactly the batches that it missed.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator

import numpy as np

from pipeline.config import Training
from pipeline.dataset.augmentation import Plan, augment
from pipeline.dataset.normalisation import Normalisation

# Purposes of the random streams; part of the seed, so that no two streams share numbers.
_SPLIT, _ORDER, _AUGMENT, _FIRST_FLIP = range(4)


def split(labels: np.ndarray, validation_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split (N,) labels into ascending indices for training and validation.

    Validation gets the same share of every class, up to rounding. Test images are not involved.
    """
    generator = _stream(seed, _SPLIT)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = counts * validation_images / len(labels)
    taken = np.floor(quotas).astype(int)
    taken[np.argsort(taken - quotas, kind="stable")[: validation_images - taken.sum()]] += 1
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, taken, strict=True)
    ]
    validation = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def batch_bounds(images: int, batch_size: int) -> np.ndarray:
    """Return where the batches of an epoch start and where the last one ends: (batches + 1,) ascending integers.

    The last batch has what is left over, unless that is less than a sixteenth of a batch or 8 images. Then all batches
    get nearly the same size: a few images make a noisy gradient, but an update of full length, and they are the last
    that batch norm's running statistics see. One image after five batches of 400 halved the accuracy; 25 did no harm.
    """
    batch_size = min(batch_size, images)
    batches, left = -(-images // batch_size), images % batch_size
    bounds = np.minimum(np.arange(batches + 1) * batch_size, images)
    if 0 < left < max(batch_size / 16, 8):
        size, larger = divmod(images, batches)
        bounds = np.arange(batches + 1) * size + np.minimum(np.arange(batches + 1), larger)
    return bounds


class TrainingLoader:
    """Batches of one training. The content of a batch depends only on the settings, the epoch and the step.

    `images` (N, 3, 32, 32) uint8 and `labels` (N,) are not copied; `indices` selects the training images. With a
    `share` (rank, workers), each batch is this rank's part of it, which may be empty.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        training: Training,
        norm: Normalisation,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.share = share
        self.images, self.labels, self.indices = images, labels, indices
        self.bounds = batch_bounds(len(indices), training.batch_size)
        self.augmentation, self.seed, self.norm = training.augmentation, training.seed, norm
        self.steps_per_epoch = len(self.bounds) - 1
        self._first_flip = _stream(self.seed, _FIRST_FLIP).random(len(labels)) < 0.5
        self.waited = 0.0  # seconds spent waiting for a batch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the batches of one epoch from `first_step` on: (n, 3, 32, 32) float32 and (n,) float32 labels."""
        order = self.order(epoch)
        # A thread prepares the next batch while the caller works on the current one.
        with concurrent.futures.ThreadPoolExecutor(1, "batches") as executor:
            waiting = executor.submit(self.batch, epoch, first_step, order)
            for step in range(first_step, self.steps_per_epoch):
                asked = time.monotonic()
                ready = waiting.result()
                self.waited += time.monotonic() - asked
                if step + 1 < self.steps_per_epoch:
                    waiting = executor.submit(self.batch, epoch, step + 1, order)
                yield ready

    def size(self, step: int) -> int:
        """Number of images in batch `step` of an epoch, over all workers."""
        return int(self.bounds[step + 1] - self.bounds[step])

    def order(self, epoch: int) -> np.ndarray:
        """Shuffle the training indices for one epoch."""
        return _stream(self.seed, _ORDER, epoch).permutation(self.indices)

    def batch(self, epoch: int, step: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `step` of an epoch, augmented and normalised. The last ones may be smaller."""
        plan = self.plan(epoch, step, order)
        images = augment(self.images[plan.rows], plan, self.augmentation)
        return self.norm.apply(images), self.labels[plan.rows].astype(np.float32)

    def plan(self, epoch: int, step: int, order: np.ndarray) -> Plan:
        """Plan which images this rank gets in batch `step` of an epoch, and how each is augmented."""
        rows = order[self.bounds[step] : self.bounds[step + 1]]
        count, (height, width) = len(rows), self.images.shape[2:]
        pad, cutout = self.augmentation.pad_crop, self.augmentation.cutout
        generator = _stream(self.seed, _AUGMENT, epoch, step)
        flips = shifts = holes = None
        if self.augmentation.flip == "random":
            flips = generator.random(count) < 0.5
        elif self.augmentation.flip == "alternating":
            # Each image is mirrored in every other epoch (Jordan 2024, arXiv:2404.00498, section 3.6).
            flips = self._first_flip[rows] ^ bool(epoch % 2)
        if pad:
            shifts = generator.integers(0, 2 * pad + 1, (2, count))
        if cutout:
            middle = (generator.integers(0, height, count), generator.integers(0, width, count))
            holes = np.stack(middle) - cutout // 2
        return Plan(rows, flips, shifts, holes).part(*self.share)


def padded_batches(images: np.ndarray, batch_size: int, norm: Normalisation) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (batch_size, 3, 32, 32) float32 batches in order, padded with zeros, each with its number of images."""
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        values = norm.apply(np.asarray(part))
        if len(part) < batch_size:  # a constant shape saves MXNet from planning its memory again
            values = np.concatenate([values, np.zeros((batch_size - len(part), *values.shape[1:]), np.float32)])
        yield values, len(part)


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
