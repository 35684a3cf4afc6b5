"""Muon, an optimizer that orthogonalizes the momentum updates of hidden layers, on top of MXNet's Nesterov.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": every direction of a layer's update gets
about the same size, which takes far fewer steps. Here Muon updates all convolutions but the first; Nesterov updates
the other parameters with the same learning rate and momentum.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline.runtime import plain_operator

#: Coefficients of the quintic Newton-Schulz iteration for a matrix's orthogonal factor, from the same source. They
#: bring singular values between 0.7 and 1.2, rather than to 1, which suffices and takes few iterations.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

#: Up to this side length, products stay in float32: casting a matrix to the training's precision would cost more time
#: than it saves (measured on two cores of an Intel Xeon with AMX).
FLOAT32_SIDE = 128

#: Three iterations do as well as five on networks of this size.
ITERATIONS = 3


def is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon updates the parameter with this structural name: a kernel of any convolution but the first."""
    return len(shape) == 4 and name != "0.0.weight"


def orthogonal(F: Any, matrix: Any, identity: Any, shape: tuple[int, int]) -> Any:
    """A float32 matrix of the same shape with the singular vectors of `matrix` and singular values near 1.

    `F` is `mx.nd` or `mx.sym`; `identity` is square, of the smaller side. Iterates on `x x^T` or `x^T x`, whichever is
    smaller, and uses `x` only at the beginning and the end, which halves the time for matrices that are not square.
    """
    a, b, c = COEFFICIENTS
    rows, columns = shape
    side = min(shape)
    flat = F.reshape(matrix, (-1,))
    x = F.broadcast_div(matrix, F.reshape(F.sqrt(F.dot(flat, flat)), (1, 1)) + 1e-7)
    if rows > columns:
        x = F.transpose(x)

    def product(left: Any, right: Any, width: int = side) -> Any:
        """`left right^T`, where `right` has `width` rows. The dense layer's operator uses oneDNN, `gemm2` BLAS."""
        if side <= FLOAT32_SIDE:
            return plain_operator(F, "FullyConnected")(left, right, num_hidden=width, no_bias=True)
        # Under AMP this computes in the training's precision.
        return F.amp_cast(F.FullyConnected(left, right, num_hidden=width, no_bias=True), dtype="float32")

    square, polynomial = product(x, x), None
    for step in range(ITERATIONS):
        # All factors are polynomials of one symmetric matrix, so they are symmetric and commute.
        factor = c * product(square, square) + b * square + a * identity
        polynomial = factor if polynomial is None else product(factor, polynomial)
        if step + 1 < ITERATIONS:
            square = product(product(factor, square), factor)
    y = F.transpose(x)
    return product(y, polynomial) if rows > columns else product(polynomial, y, columns)


def optimizer(mx: Any, hidden: list[bool], **settings: float) -> Any:
    """A Muon optimizer with the `settings` of MXNet's `NAG`. `hidden` says, in order, which parameters Muon updates.

    Before each step, a kernel is rescaled to the norm of a matrix with orthogonal rows of length 1. Otherwise it would
    grow under batch normalisation, which ignores the norm, and the learning rate would lose its effect. Without batch
    normalisation, the fixed norm replaces weight decay.
    """

    class Orthogonal(mx.gluon.HybridBlock):
        """`orthogonal` as one graph, which makes a training step 3 % faster."""

        def __init__(self, shape: tuple[int, int]) -> None:
            super().__init__()
            self.shape = shape
            self.hybridize(static_alloc=True, static_shape=True)

        def hybrid_forward(self, F: Any, matrix: Any, identity: Any) -> Any:
            return orthogonal(F, matrix, identity, self.shape)

    block, zero = cache(Orthogonal), cache(mx.nd.zeros)
    identity = cache(lambda side, context: mx.nd.eye(side, ctx=context))

    class Muon(mx.optimizer.NAG):
        def update(self, index: int, weight: Any, grad: Any, state: Any) -> None:
            if not hidden[index]:
                super().update(index, weight, grad, state)
                return
            # Nesterov's update of a zero weight, with a learning rate of -1, is the direction to orthogonalize.
            step = {"lr": -1, "momentum": self.momentum, "rescale_grad": self.rescale_grad}
            direction = mx.nd.nag_mom_update(zero(weight.shape, weight.context), grad, state, **step)
            rows, flat = weight.shape[0], weight.reshape((-1,))
            matrix = direction.reshape((rows, -1))
            update = block(matrix.shape)(matrix, identity(min(matrix.shape), matrix.context)).reshape(weight.shape)
            scale = (rows / mx.nd.dot(flat, flat)).sqrt().reshape((1, 1, 1, 1))
            mx.nd.broadcast_mul(weight, scale, out=weight)
            mx.nd.sgd_update(weight, update, lr=self._get_lr(index), out=weight)

    return Muon(**settings)
