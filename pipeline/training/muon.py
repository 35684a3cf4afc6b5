"""Muon, an optimizer for hidden layers: momentum whose update is made orthogonal, on top of MXNet's Nesterov.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": every direction of a layer's update gets
about the same size, so that far fewer steps are needed. Here it updates the convolutions but the first one; the rest is
updated by Nesterov with the same learning rate and momentum.
"""

from __future__ import annotations

from typing import Any

#: Quintic Newton-Schulz iteration for the orthogonal factor of a matrix, coefficients of the same source. They bring
#: singular values between 0.7 and 1.2, not to 1, which suffices and needs few iterations.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

#: Three do as well as five on networks of this size.
ITERATIONS = 3


def is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon updates the parameter of this structural name: kernels of all convolutions but the first."""
    return len(shape) == 4 and name != "0.0.weight"


def orthogonal(mx: Any, matrix: Any) -> Any:
    """A float32 matrix of the same shape whose singular values are near 1, with the directions of `matrix`.

    Iterates on the square matrix `x x^T` alone (or `x^T x`, the smaller one): each step multiplies `x` by a polynomial
    of it, so `x` itself is only needed at the beginning and at the end. Half the time where one side is the longer.
    """
    a, b, c = COEFFICIENTS
    flat = matrix.reshape((-1,))
    x = mx.nd.broadcast_div(matrix, mx.nd.dot(flat, flat).sqrt().reshape((1, 1)) + 1e-7)
    high = matrix.shape[0] > matrix.shape[1]
    product = mx.nd.linalg.gemm2
    square = mx.nd.linalg.syrk(x, transpose=high)
    identity = mx.nd.eye(square.shape[0], ctx=matrix.context)
    whole = None
    for step in range(ITERATIONS):
        factor = mx.nd.linalg.gemm(square, square, square, alpha=c, beta=b) + a * identity
        whole = factor if whole is None else product(factor, whole)
        if step + 1 < ITERATIONS:
            square = product(product(factor, square), factor)
    return product(x, whole) if high else product(whole, x)


def optimizer(mx: Any, hidden: list[bool], **settings: float) -> Any:
    """An MXNet optimizer with the `settings` of its `NAG`.

    `hidden` says of each parameter, in order, whether Muon updates it.

    A kernel that it updates has the norm of a matrix with orthogonal rows of length 1 before each step. Batch
    normalisation takes no notice of the size, and without a fixed one the learning rate would mean less and less.
    """

    class Muon(mx.optimizer.NAG):
        def update(self, index: int, weight: Any, grad: Any, state: Any) -> None:
            if not hidden[index]:
                super().update(index, weight, grad, state)
                return
            rows = weight.shape[0]
            gradient, sums = grad.reshape((rows, -1)) * self.rescale_grad, state.reshape((rows, -1))
            mx.nd.elemwise_add(sums * self.momentum, gradient, out=sums)
            update = orthogonal(mx, gradient + sums * self.momentum).reshape(weight.shape)
            flat = weight.reshape((-1,))
            scale = (rows / mx.nd.dot(flat, flat)).sqrt().reshape((1, 1, 1, 1))
            weight[:] = mx.nd.broadcast_mul(weight, scale) - update * self._get_lr(index)

    return Muon(**settings)
