"""The test images that a report shows, and how they get into the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

#: How many images are shown, and how many of the probabilities beside each.
SHOWN_IMAGES, SHOWN_PROBABILITIES = 12, 3


def most_confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Wrong predictions in falling order of their probability; (n, classes) probabilities, (n,) labels.

    Each image's number, true and predicted class, and largest probabilities; the true class is always among them.
    """
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    order = np.argsort(-probabilities.max(1)[wrong], kind="stable")
    found = []
    for index in wrong[order][:SHOWN_IMAGES]:
        row = probabilities[index]
        best = np.argsort(-row, kind="stable")[:SHOWN_PROBABILITIES]
        if labels[index] not in best:
            best[-1] = labels[index]
        found.append(
            {
                "image": int(index),
                "label": classes[int(labels[index])],
                "predicted": classes[int(best[0])],
                "probabilities": {classes[int(number)]: round(float(row[number]), 6) for number in best},
            }
        )
    return found


def data_uri(image: np.ndarray) -> str:
    """A (3, H, W) uint8 image as a PNG inside a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
