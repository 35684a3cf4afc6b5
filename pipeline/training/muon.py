"""Muon, an optimizer for hidden layers: momentum whose update is made orthogonal, on top of MXNet's Nesterov.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": every direction of a layer's update gets
about the same size, so that far fewer steps are needed. Here it updates the convolutions but the first one; the rest is
updated by Nesterov with the same learning rate and momentum.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline.runtime import plain_operator

#: Quintic Newton-Schulz iteration for the orthogonal factor of a matrix, coefficients of the same source. They bring
#: singular values between 0.7 and 1.2, not to 1, which suffices and needs few iterations.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

#: Largest side of a matrix for which casting it to the precision of the training costs more time than it saves (two
#: cores of an Intel Xeon with AMX).
FLOAT32_SIDE = 128

#: Three do as well as five on networks of this size.
ITERATIONS = 3


def is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon updates the parameter of this structural name: kernels of all convolutions but the first."""
    return len(shape) == 4 and name != "0.0.weight"


def orthogonal(F: Any, matrix: Any, identity: Any, shape: tuple[int, int]) -> Any:
    """A float32 matrix of the same shape whose singular values are near 1, with the directions of `matrix`.

    `F` is `mx.nd` or `mx.sym`, `identity` the square matrix of the smaller side. Iterates on the square matrix `x x^T`
    alone (or `x^T x`, the smaller one): each step multiplies `x` by a polynomial of it, so `x` itself is only needed at
    the beginning and at the end. Half the time where one side is the longer.
    """
    a, b, c = COEFFICIENTS
    rows, columns = shape
    side = min(shape)
    flat = F.reshape(matrix, (-1,))
    x = F.broadcast_div(matrix, F.reshape(F.sqrt(F.dot(flat, flat)), (1, 1)) + 1e-7)
    if rows > columns:
        x = F.transpose(x)

    def product(left: Any, right: Any, width: int = side) -> Any:
        """`left right^T`, `right` of so many rows, by the dense layer's operator: oneDNN's, where `gemm2` is BLAS."""
        if side <= FLOAT32_SIDE:
            return plain_operator(F, "FullyConnected")(left, right, num_hidden=width, no_bias=True)
        # Under AMP it works in the precision of the training.
        return F.amp_cast(F.FullyConnected(left, right, num_hidden=width, no_bias=True), dtype="float32")

    square, whole = product(x, x), None
    for step in range(ITERATIONS):
        # All of these are polynomials of one symmetric matrix: symmetric, and in any order.
        factor = c * product(square, square) + b * square + a * identity
        whole = factor if whole is None else product(factor, whole)
        if step + 1 < ITERATIONS:
            square = product(product(factor, square), factor)
    y = F.transpose(x)
    return product(y, whole) if rows > columns else product(whole, y, columns)


def optimizer(mx: Any, hidden: list[bool], **settings: float) -> Any:
    """An MXNet optimizer with the `settings` of its `NAG`.

    `hidden` says of each parameter, in order, whether Muon updates it.

    A kernel that it updates has the norm of a matrix with orthogonal rows of length 1 before each step. Batch
    normalisation takes no notice of the size, and without a fixed one the learning rate would mean less and less. In a
    network without it the fixed size stands for weight decay.
    """

    class Orthogonal(mx.gluon.HybridBlock):
        """`orthogonal` as one graph: a training step takes 3 % less time than operator by operator."""

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
            # Nesterov's update of a weight of zero, with a learning rate of -1, is the direction to make orthogonal.
            step = {"lr": -1, "momentum": self.momentum, "rescale_grad": self.rescale_grad}
            direction = mx.nd.nag_mom_update(zero(weight.shape, weight.context), grad, state, **step)
            rows, flat = weight.shape[0], weight.reshape((-1,))
            matrix = direction.reshape((rows, -1))
            update = block(matrix.shape)(matrix, identity(min(matrix.shape), matrix.context)).reshape(weight.shape)
            scale = (rows / mx.nd.dot(flat, flat)).sqrt().reshape((1, 1, 1, 1))
            mx.nd.broadcast_mul(weight, scale, out=weight)
            mx.nd.sgd_update(weight, update, lr=self._get_lr(index), out=weight)

    return Muon(**settings)
