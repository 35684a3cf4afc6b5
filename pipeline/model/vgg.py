"""VGG from a configuration: the Gluon network, and what can be said about it without MXNet.

Simonyan and Zisserman 2014, arXiv:1409.1556.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import IMAGE_SIZE, Architecture
from pipeline.runtime import mxnet, plain_convolution

CHANNELS = 3


def build(architecture: Architecture, precision: str = "float32") -> Any:
    """The network as a Gluon `HybridBlock`: (N, 3, 32, 32) float32 images in, (N, classes) logits out.

    A block is `[convolutions, channels]`: 3x3 convolutions with padding 1, each with ReLU (batch normalisation
    before it if configured), then a 2x2 max-pool of stride 2. Without batch normalisation the structural parameter
    names are `0.0.weight` … `9.bias`, those of nested Sequentials. Not initialised yet.

    In a `precision` other than float32 MXNet's AMP casts what the layers compute with. In bfloat16 the first
    convolution of a network with batch normalisation stays in float32: for three input channels oneDNN 2.4 has no
    bfloat16 convolution that gives its blocked layout, and in the plain one batch normalisation is 15 times as slow.
    """
    mx = mxnet()
    nn = mx.gluon.nn
    convolution = _plain_convolution(mx) if precision == "bfloat16" and architecture.batch_norm else nn.Conv2D
    # Fixed prefixes: the global counters of Gluon would name the same layer differently in one process or another,
    # and MXNet orders parameters by these names (apache/mxnet issue 17357).
    net = nn.HybridSequential(prefix="vgg_")
    inputs = CHANNELS
    for index, (convolutions, channels) in enumerate(architecture.conv_arch):
        block = nn.HybridSequential(prefix=f"vgg_block{index}_")
        for number in range(convolutions):
            prefix = f"vgg_block{index}_{{}}{number}_"
            fixed = {"padding": 1, "in_channels": inputs, "prefix": prefix.format("conv")}
            if architecture.batch_norm:
                # The normalisation's own offset makes a bias superfluous.
                block.add(
                    convolution(channels, 3, use_bias=False, **fixed),
                    nn.BatchNorm(in_channels=channels, prefix=prefix.format("norm")),
                    nn.Activation("relu", prefix=prefix.format("relu")),
                )
            else:
                block.add(nn.Conv2D(channels, 3, activation="relu", **fixed))
            inputs, convolution = channels, nn.Conv2D
        block.add(nn.MaxPool2D(2, 2, prefix=f"vgg_block{index}_pool_"))
        net.add(block)
    units = _flat_size(architecture)
    for index, width in enumerate(architecture.dense):
        net.add(nn.Dense(width, activation="relu", in_units=units, prefix=f"vgg_dense{index}_"))
        net.add(nn.Dropout(architecture.dropout, prefix=f"vgg_dropout{index}_"))
        units = width
    net.add(nn.Dense(architecture.outputs, in_units=units, prefix="vgg_output_"))
    return net


def _plain_convolution(mx: Any) -> Any:
    """Gluon's `Conv2D` without an activation, which computes in the type of its input whatever AMP wants."""

    class PlainConv2D(mx.gluon.nn.Conv2D):
        def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:
            return plain_convolution(F)(x, weight, name="fwd", **self._kwargs)

    return PlainConv2D


def parameters(net: Any) -> dict[str, Any]:
    """Structural name -> Gluon `Parameter`, in the network's order; the names of `.params` files."""
    return net._collect_params_with_prefix()


@dataclass(frozen=True)
class Layer:
    """One layer: structural name, output shape without the batch, learned parameters, multiply-adds per image."""

    name: str
    kind: str
    block: int
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layer_table(architecture: Architecture) -> list[Layer]:
    """Every layer in order, with shapes, parameter counts and multiply-adds, computed from the configuration."""
    layers: list[Layer] = []
    size, inputs = IMAGE_SIZE, CHANNELS
    for index, (convolutions, channels) in enumerate(architecture.conv_arch):
        position, output = 0, (channels, size, size)
        for _ in range(convolutions):
            weights = inputs * channels * 9
            learned = weights if architecture.batch_norm else weights + channels
            layers.append(Layer(f"{index}.{position}", "conv 3x3", index, output, learned, weights * size * size))
            position, inputs = position + 1, channels
            if architecture.batch_norm:
                layers.append(Layer(f"{index}.{position}", "batch norm", index, output, 2 * channels, 0))
                position += 2  # its ReLU is a layer of its own
        size //= 2
        layers.append(Layer(f"{index}.{position}", "max pool 2x2", index, (channels, size, size), 0, 0))
    units, position = _flat_size(architecture), len(architecture.conv_arch)
    for width, kind in [*((width, "dense") for width in architecture.dense), (architecture.outputs, "output")]:
        layers.append(Layer(str(position), kind, -1, (width,), units * width + width, units * width))
        units, position = width, position + 2  # a dropout follows each dense layer
    return layers


def count_parameters(architecture: Architecture) -> int:
    """Learned parameters of the network (running statistics of batch normalisation not counted)."""
    return sum(layer.parameters for layer in layer_table(architecture))


def count_multiply_adds(architecture: Architecture) -> int:
    """Multiply-adds of one forward pass of one image."""
    return sum(layer.multiply_adds for layer in layer_table(architecture))


def _flat_size(architecture: Architecture) -> int:
    side = IMAGE_SIZE >> len(architecture.conv_arch)
    return architecture.conv_arch[-1][1] * side * side
