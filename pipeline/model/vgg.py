"""VGG (Simonyan and Zisserman 2014, arXiv:1409.1556): the Gluon network, and a table of its layers without MXNet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.config import Architecture
from pipeline.runtime import mxnet, plain_operator

CHANNELS = 3


def build(architecture: Architecture, precision: str = "float32") -> Any:
    """Build the network as a Gluon `HybridBlock`, uninitialised: (N, 3, 32, 32) float32 images to (N, classes) logits.

    A block `[convolutions, channels]` is a sequence of 3x3 convolutions with padding 1, each followed by batch
    normalisation, if configured, and the activation. A 2x2 max-pool of stride 2 ends the block or follows its first
    convolution. A stem in front of the blocks is a frozen 2x2 convolution without padding or bias. Parameters have the
    structural names of nested Sequentials: without batch normalisation and stem, `0.0.weight` … `9.bias`.

    With a stem, an early pool, GELU and a global max-pool, this is the network of Jordan 2024, arXiv:2404.00498.

    In a `precision` other than float32, MXNet's AMP casts the operands of the layers. In bfloat16, the first
    convolution of a network with batch normalisation and no stem stays in float32: for three input channels, oneDNN
    2.4 has no bfloat16 convolution with a blocked output, and batch normalisation of a plain one is 15 times as slow.
    Over 2x2 pixels, a convolution is computed as a dense layer, five times as fast (`DenseConv2D`).
    """
    mx = mxnet()
    nn, norm = mx.gluon.nn, architecture.norm
    merged = "relu" if architecture.activation == "relu" else None  # ReLU can be part of the layer before it
    in_float32 = precision == "bfloat16" and norm and not architecture.stem
    convolution = _plain_convolution(mx) if in_float32 else nn.Conv2D

    def activation(prefix: str) -> Any:
        return nn.GELU(prefix=prefix) if architecture.activation == "gelu" else nn.Activation("relu", prefix=prefix)

    # Fixed prefixes: Gluon's global counters can name the same layer differently from process to process, and MXNet
    # orders parameters by these names (apache/mxnet issue 17357).
    net = nn.HybridSequential(prefix="vgg_")
    inputs = CHANNELS
    if architecture.stem:
        stem = nn.HybridSequential(prefix="vgg_stem_")
        stem_convolution = _stem_convolution(mx) if precision == "bfloat16" else nn.Conv2D
        stem.add(stem_convolution(architecture.stem, 2, use_bias=False, in_channels=inputs, prefix="vgg_stem_conv_"))
        stem[0].weight.grad_req = "null"
        stem.add(activation("vgg_stem_relu_"))
        net.add(stem)
        inputs = architecture.stem
    for index, (convolutions, channels) in enumerate(architecture.conv_arch):
        block = nn.HybridSequential(prefix=f"vgg_block{index}_")
        pool = nn.MaxPool2D(2, 2, prefix=f"vgg_block{index}_pool_")
        for number in range(convolutions):
            prefix = f"vgg_block{index}_{{}}{number}_"
            # The offset of the normalisation makes a bias redundant.
            fixed = {"padding": 1, "in_channels": inputs, "prefix": prefix.format("conv"), "use_bias": not norm}
            side = architecture.sides[index + (number > 0 and architecture.pool == "first")]
            if side == 2 and precision == "bfloat16":
                convolution = _dense_convolution(mx)
            block.add(convolution(channels, 3, activation=None if norm else merged, **fixed))
            inputs, convolution = channels, nn.Conv2D
            if number == 0 and architecture.pool == "first":
                block.add(pool)
            if norm:
                options = {"scale": norm.scale, "momentum": norm.momentum, "in_channels": channels}
                block.add(nn.BatchNorm(prefix=prefix.format("norm"), **options))
            if norm or not merged:
                block.add(activation(prefix.format("relu")))
        if architecture.pool == "last":
            block.add(pool)
        net.add(block)
    if architecture.global_pool == "max":
        net.add(nn.GlobalMaxPool2D(prefix="vgg_pool_"))
    units = _flat_size(architecture)
    for index, width in enumerate(architecture.dense):
        net.add(nn.Dense(width, activation=merged, in_units=units, prefix=f"vgg_dense{index}_"))
        if not merged:
            net.add(activation(f"vgg_dense{index}_relu_"))
        net.add(nn.Dropout(architecture.dropout, prefix=f"vgg_dropout{index}_"))
        units = width
    net.add(nn.Dense(architecture.outputs, in_units=units, prefix="vgg_output_"))
    return net


def _plain_convolution(mx: Any) -> Any:
    """Gluon's `Conv2D` without activation, exempt from AMP: it computes in the dtype of its input."""

    class PlainConv2D(mx.gluon.nn.Conv2D):
        def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:
            return plain_operator(F, "Convolution")(x, weight, name="fwd", **self._kwargs)

    return PlainConv2D


def _stem_convolution(mx: Any) -> Any:
    """Gluon's `Conv2D` without bias, with a fourth input channel that has zero weights.

    For three channels and 2x2 filters, oneDNN 2.4's only bfloat16 kernel multiplies matrices, and its plain layout
    costs two reorders as well.
    """

    class StemConv2D(mx.gluon.nn.Conv2D):
        def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:
            x = F.concat(x, F.slice_axis(x, axis=1, begin=0, end=1), dim=1)
            weight = F.concat(weight, F.zeros_like(F.slice_axis(weight, axis=1, begin=0, end=1)), dim=1)
            return F.Convolution(x, weight, name="fwd", **self._kwargs)

    return StemConv2D


def _dense_convolution(mx: Any) -> Any:
    """Gluon's 3x3 `Conv2D` over 2x2 pixels, each of which sees all four: a dense layer with shared weights.

    oneDNN 2.4 convolves image by image there and takes five times as long (512 channels, batches of 500).
    """

    class DenseConv2D(mx.gluon.nn.Conv2D):
        def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
            # For each output pixel, the part of the kernel that overlaps the image.
            parts = [
                F.slice(weight, begin=(None, None, row, column), end=(None, None, row + 2, column + 2))
                for row in (1, 0)
                for column in (1, 0)
            ]
            matrix = F.reshape(F.concat(*parts, dim=0), (4 * self._channels, -1))
            tiled = {"no_bias": True} if bias is None else {"bias": F.tile(bias, 4)}
            y = F.FullyConnected(x, matrix, num_hidden=4 * self._channels, **tiled)
            y = F.reshape(F.transpose(F.reshape(y, (0, 4, self._channels)), (0, 2, 1)), (0, 0, 2, 2))
            return y if self.act is None else self.act(y)

    return DenseConv2D


def parameters(net: Any) -> dict[str, Any]:
    """Map structural names, as in `.params` files, to Gluon `Parameter`s, in the network's order."""
    return net._collect_params_with_prefix()


@dataclass(frozen=True)
class Layer:
    """One layer: structural name, output shape without the batch, learned parameters, multiply-adds per image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layer_table(architecture: Architecture) -> list[Layer]:
    """List every layer in order, with shapes, parameter counts and multiply-adds, from the configuration alone."""
    layers: list[Layer] = []
    sides, norm, inputs = architecture.sides, architecture.norm, CHANNELS
    own_activation = norm is not None or architecture.activation != "relu"  # else part of the convolution

    def add(name: str, kind: str, output: tuple[int, ...], parameters: int = 0, work: int = 0) -> None:
        layers.append(Layer(name, kind, output, parameters, work))

    if architecture.stem:
        output = (architecture.stem, sides[0], sides[0])
        add("0.0", "whitening conv 2x2", output, 0, inputs * 4 * math.prod(output))
        inputs = architecture.stem
    first = 1 if architecture.stem else 0
    for index, (convolutions, channels) in enumerate(architecture.conv_arch):
        side, position = sides[index], 0
        for number in range(convolutions):
            output, name = (channels, side, side), f"{first + index}.{{}}"
            learned = inputs * channels * 9 + (0 if norm else channels)
            add(name.format(position), "conv 3x3", output, learned, inputs * 9 * math.prod(output))
            position, inputs = position + 1, channels
            if architecture.pool == "first" and number == 0:
                side = sides[index + 1]
                add(name.format(position), "max pool 2x2", (channels, side, side))
                position += 1
            if norm:
                add(name.format(position), "batch norm", (channels, side, side), channels * (1 + norm.scale))
                position += 1
            position += own_activation
        if architecture.pool == "last":
            side = sides[index + 1]
            add(name.format(position), "max pool 2x2", (channels, side, side))
    position = first + len(architecture.conv_arch)
    if architecture.global_pool == "max":
        add(str(position), "global max pool", (channels, 1, 1))
        position += 1
    units = _flat_size(architecture)
    for width, kind in [*((width, "dense") for width in architecture.dense), (architecture.outputs, "output")]:
        add(str(position), kind, (width,), units * width + width, units * width)
        # Skip the dropout and, unless it is part of the dense layer, the activation.
        units, position = width, position + (2 if architecture.activation == "relu" else 3)
    return layers


def count_parameters(architecture: Architecture) -> int:
    """Count the learned parameters, without the running statistics of batch normalisation."""
    return sum(layer.parameters for layer in layer_table(architecture))


def count_multiply_adds(architecture: Architecture) -> int:
    """Count the multiply-adds of one forward pass of one image."""
    return sum(layer.multiply_adds for layer in layer_table(architecture))


def _flat_size(architecture: Architecture) -> int:
    side = 1 if architecture.global_pool == "max" else architecture.sides[-1]
    return architecture.conv_arch[-1][1] * side * side
