"""The test images that a report shows, and how they get into the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

#: How many images each group shows, and how many of the probabilities beside each.
SHOWN_IMAGES, SHOWN_PROBABILITIES = 12, 3


@dataclass(frozen=True)
class Example:
    """One test image: its number, true and predicted class, and probabilities in falling order.

    These are the largest ones, the last of them replaced by the true class's where that is smaller still.
    """

    index: int
    label: str
    predicted: str
    probabilities: list[tuple[str, float]]

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "image": self.index,
            "label": self.label,
            "predicted": self.predicted,
            "probabilities": {name: round(value, 6) for name, value in self.probabilities},
        }


def most_confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> list[Example]:
    """Wrong predictions in falling order of their probability; (n, classes) probabilities, (n,) labels."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    wrong = np.flatnonzero(~correct)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN_IMAGES]
    return [_example(int(index), probabilities, labels, classes) for index in chosen]


def least_confident_correct(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> list[Example]:
    """Correct predictions in rising order of their probability."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    right = np.flatnonzero(correct)
    chosen = right[np.argsort(confidence[right], kind="stable")][:SHOWN_IMAGES]
    return [_example(int(index), probabilities, labels, classes) for index in chosen]


def data_uri(image: np.ndarray) -> str:
    """A (3, H, W) uint8 image as a PNG inside a `data:` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _example(index: int, probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> Example:
    row = probabilities[index]
    best = np.argsort(-row, kind="stable")[:SHOWN_PROBABILITIES]
    if labels[index] not in best:
        best[-1] = labels[index]
    return Example(
        index,
        classes[int(labels[index])],
        classes[int(best[0])],
        [(classes[int(number)], float(row[number])) for number in best],
    )
