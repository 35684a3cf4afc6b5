"""The training loss, with label smoothing and loss scaling for float16, and cross-entropy on the host."""

from __future__ import annotations

from typing import Any

import numpy as np


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per image, the negative log-likelihood of its label and whether the prediction is correct.

    Takes (n, classes) float32 logits and (n,) labels. Computes in float64 so that sums do not depend on their order.
    """
    values = logits.astype(np.float64)
    values -= values.max(1, keepdims=True)
    log_sum = np.log(np.exp(values).sum(1))
    rows = np.arange(len(labels))
    return log_sum - values[rows, labels.astype(int)], logits.argmax(1) == labels


def loss_block(mx: Any, smoothing: float, classes: int) -> Any:
    """A block that returns the summed cross-entropy (optionally smoothed) and the number of correct predictions."""

    class Loss(mx.gluon.HybridBlock):
        def hybrid_forward(self, F: Any, logits: Any, labels: Any) -> Any:
            log_probability = F.log_softmax(F.cast(logits, dtype="float32"), axis=-1)
            loss = -F.sum(F.pick(log_probability, labels, axis=-1))
            if smoothing:
                # Szegedy et al. 2015, arXiv:1512.00567: the label gets 1 - smoothing, the rest is uniform.
                loss = (1 - smoothing) * loss - smoothing / classes * F.sum(log_probability)
            correct = F.broadcast_equal(F.argmax(log_probability, axis=-1), labels)
            return loss, F.sum(F.BlockGrad(correct))

    return Loss(prefix="loss_")


class LossScaler:
    """Dynamic loss scaling for float16: halve on overflow, double after 2,000 good steps (arXiv:1710.03740)."""

    def __init__(self) -> None:
        self.scale, self.good_steps = 2.0**16, 0.0

    def accept(self, gradients: list[Any], mx: Any) -> bool:
        """Whether all gradients are finite. Adjusts the scale for the next step."""
        finite = bool(mx.nd.multi_all_finite(*gradients, num_arrays=len(gradients)).asscalar())
        self.good_steps = self.good_steps + 1 if finite else 0.0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good_steps >= 2000:
            self.scale, self.good_steps = self.scale * 2, 0.0
        return finite
