"""Image normalisation: measured on the training images, recorded in the manifest, the same wherever a model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Images counted at once, few enough for the CPU's cache.
_AT_ONCE = 500


@dataclass(frozen=True)
class Normalisation:
    """Maps pixel values 0..255 to `(value / 255 - mean) / std`, channel by channel; by default to 0..1."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def measure(cls, images: np.ndarray) -> Normalisation:
        """Measure mean and standard deviation of each channel of (N, 3, H, W) uint8 images, on the scale 0..1."""
        pairs = np.zeros((3, 1 << 16), np.int64)  # counts of pairs of neighbouring pixels, half as many as pixels
        for start in range(0, len(images), _AT_ONCE):
            for channel, histogram in enumerate(pairs):
                pixels = images[start : start + _AT_ONCE, channel].reshape(-1)
                histogram += np.bincount(pixels.view(np.uint16), minlength=len(histogram))
        counts = sum(pairs.reshape(3, 256, 256).sum(axis) for axis in (1, 2))
        values = np.arange(256) / 255
        mean = counts @ values / counts.sum(1)
        variance = counts @ values**2 / counts.sum(1) - mean**2  # of a single colour, rounding can make it negative
        std = np.sqrt(np.maximum(variance, 1e-6))
        # Six digits are more than enough, and print and compare well.
        return cls(*(tuple(round(value, 6) for value in part.tolist()) for part in (mean, std)))

    @classmethod
    def from_manifest(cls, details: Mapping[str, Mapping[str, Sequence[float]]]) -> Normalisation:
        """Return the normalisation recorded in the details of a training's manifest."""
        value = details["normalisation"]
        return cls(tuple(value["mean"]), tuple(value["std"]))

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Normalise (N, 3, H, W) uint8 images to float32 of the same shape."""
        scale = np.array([1 / (255 * s) for s in self.std], np.float32).reshape(1, 3, 1, 1)
        shift = np.array([-m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32).reshape(1, 3, 1, 1)
        values = images.astype(np.float32)
        values *= scale
        values += shift
        return values
