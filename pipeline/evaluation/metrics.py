"""The content of `metrics.json`, from logits and labels. Plain numpy, no files."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.training.loss import cross_entropy


def compute(logits: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Compute the content of `metrics.json` from (n, outputs) logits and (n,) labels.

    `confusion[i][j]` counts images of class i that were predicted as class j. A class that is never predicted has
    precision None and F1 0. A network may have more outputs than there are classes: the outputs up to the highest one
    predicted are listed as classes without images.
    """
    loss, correct = cross_entropy(logits, labels)
    predictions = logits.argmax(1)
    classes = output_names(classes, int(predictions.max()) + 1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels.astype(int), predictions), 1)
    counts = (confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist())
    per_class = [
        {
            "class": name,
            "precision": hits / predicted if predicted else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + predicted) if support + predicted else 0.0,
            "support": support,
            "predicted": predicted,
        }
        for name, hits, support, predicted in zip(classes, *counts, strict=True)
    ]
    return {
        "accuracy": float(correct.mean()),
        "loss": float(loss.mean()),
        "images": len(labels),
        "classes": classes,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return (n, classes) float32 probabilities for (n, classes) logits."""
    values = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return (values / values.sum(1, keepdims=True)).astype(np.float32)


def output_names(classes: list[str], outputs: int) -> list[str]:
    """Name each output of a network, which may have more of them than its data set has classes."""
    return [*classes, *(f"unnamed class {number}" for number in range(len(classes), outputs))]
