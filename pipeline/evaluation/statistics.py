"""The statistics of a report: intervals, calibration, comparison of two sets of predictions. Plain numpy, no files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

#: Two-sided 95 % quantile of the normal distribution.
_Z95 = 1.959963984540054

#: The same quantile of Student's t distribution with 1, 2, 3, … degrees of freedom.
_STUDENT95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

CALIBRATION_BINS = 15


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `hits` in `count` trials, both ends in 0..1.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22. Unlike the normal
    approximation, it never leaves 0..1 and holds for shares near 0 or 1. Returns (0, 1) without trials.
    """
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # For a share of exactly 0 or 1, the interval ends there, whatever the rounding.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return low, 1.0 if hits == count else min(1.0, centre + half)


def mean_intervals(groups: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return the 95 % intervals of the means of groups of independent values. One group must have two or more values.

    Student's t with a standard deviation pooled over the groups, as in an analysis of variance (Fisher 1925,
    "Statistical methods for research workers"), so that a few values in each group are enough.
    """
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((value - fmean(group)) ** 2 for group in groups for value in group)
    deviation = math.sqrt(squares / freedom)
    halves = [_student_quantile(freedom) * deviation / math.sqrt(len(group)) for group in groups]
    return [(fmean(group) - half, fmean(group) + half) for group, half in zip(groups, halves, strict=True)]


def _student_quantile(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t distribution, to at least three digits."""
    if freedom <= len(_STUDENT95):
        return _STUDENT95[freedom - 1]
    # Cornish-Fisher expansion, Abramowitz and Stegun 1964, 26.7.5.
    z = _Z95
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + (z**3 + z) / (4 * freedom) + second + third


@dataclass(frozen=True)
class Bin:
    """Predictions with a confidence in `low`..`high`: count, mean confidence, accuracy, and its 95 % interval."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None
    interval: tuple[float, float]


def calibration(probabilities: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Group predictions into bins of equal width by their confidence, the maximum of (n, classes) probabilities.

    `correct` says which predictions are right, (n,) booleans.
    """
    confidence = probabilities.max(1).astype(np.float64)
    # Bins are open below and closed above, as in Guo et al. 2017.
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    result = []
    for index in range(bins):
        inside = number == index
        count, hits = int(inside.sum()), int((inside & correct).sum())
        mean, share = (float(confidence[inside].mean()), hits / count) if count else (None, None)
        result.append(Bin(index / bins, (index + 1) / bins, count, mean, share, wilson_interval(hits, count)))
    return result


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the mean gap between confidence and accuracy, 0 to 1 (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    gap = sum(item.count * abs((item.confidence or 0.0) - (item.accuracy or 0.0)) for item in bins)
    return gap / max(1, sum(item.count for item in bins))


def compare_paired(correct: np.ndarray, correct_before: np.ndarray) -> dict[str, Any]:
    """Compare two models on the same images, given (n,) booleans of which images each got right.

    `accuracy` is that of the model before, `difference` the gain of the new one. `p` is from the two-sided exact
    McNemar test: how likely it is, if both are equally good, that the images on which they differ split at least this
    unevenly (McNemar 1947, Psychometrika 12). `interval` is the 95 % interval of `difference`, an adjusted Wald
    interval (Agresti and Min 2005, Statistics in Medicine 24).
    """
    gained = int((correct & ~correct_before).sum())
    lost = int((~correct & correct_before).sum())
    p = _binomial_two_sided(min(gained, lost), gained + lost)
    return {
        "images": len(correct),
        "accuracy": float(correct_before.mean()),
        "difference": float(correct.mean() - correct_before.mean()),
        "gained": gained,
        "lost": lost,
        "p": p,
        "interval": _paired_interval(gained, lost, len(correct)),
    }


def _paired_interval(gained: int, lost: int, count: int) -> list[float]:
    """Add half an image to each of the four outcomes, so that few differences do not look like certainty."""
    b, c, n = gained + 0.5, lost + 0.5, count + 2
    half = _Z95 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    return [max(-1.0, (b - c) / n - half), min(1.0, (b - c) / n + half)]


def _binomial_two_sided(fewer: int, count: int) -> float:
    """Sum integer coefficients, each derived from the one before; only the final division rounds."""
    coefficients = itertools.accumulate(range(fewer), lambda value, k: value * (count - k) // (k + 1), initial=1)
    return min(1.0, 2 * sum(coefficients) / 2**count)
