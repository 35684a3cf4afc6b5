"""VGG from a configuration: the Gluon network, and what can be said about it without MXNet.

`build` makes the network; `layer_table` and `count_parameters` need neither MXNet nor a training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import IMAGE_SIZE, Architecture

CHANNELS = 3


@dataclass(frozen=True)
class Layer:
    """One layer: its structural name, output shape without the batch, learned parameters, multiply-adds an image."""

    name: str
    kind: str
    block: int
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def build(architecture: Architecture, precision: str = "float32") -> Any:
    """The network as a Gluon `HybridBlock`: (N, 3, 32, 32) float32 images in, (N, classes) logits out.

    A block is `[convolutions, channels]`: 3x3 convolutions with padding 1, each with ReLU (batch normalisation
    before it if configured), then a 2x2 max-pool of stride 2. Simonyan and Zisserman 2014, arXiv:1409.1556.
    Without batch normalisation the structural parameter names are `0.0.weight` … `9.bias`, those of nested
    Sequentials. Not initialised yet.

    In a `precision` other than float32 MXNet's AMP casts what the layers compute with. In bfloat16 the first
    convolution of a network with batch normalisation stays in float32: for three input channels oneDNN 2.4 has no
    bfloat16 convolution that gives its blocked layout, and in the plain one batch normalisation is 15 times as slow.
    """
    from pipeline.runtime import mxnet

    mx = mxnet()
    nn = mx.gluon.nn
    first = _plain_convolution(mx) if precision == "bfloat16" and architecture.batch_norm else nn.Conv2D
    # Fixed prefixes: the global counters of Gluon would name the same layer differently in one process or another,
    # and MXNet orders parameters by these names (apache/mxnet issue 17357).
    net = nn.HybridSequential(prefix="vgg_")
    for index, (convolutions, channels) in enumerate(architecture.conv_arch):
        block = nn.HybridSequential(prefix=f"vgg_block{index}_")
        for number in range(convolutions):
            name = f"vgg_block{index}_conv{number}_"
            if architecture.batch_norm:
                convolution = nn.Conv2D if index or number else first
                # The normalisation's own offset makes a bias superfluous.
                block.add(
                    convolution(
                        channels,
                        3,
                        padding=1,
                        use_bias=False,
                        in_channels=_inputs(architecture, index, number),
                        prefix=name,
                    ),
                    nn.BatchNorm(in_channels=channels, prefix=f"vgg_block{index}_norm{number}_"),
                    nn.Activation("relu", prefix=f"vgg_block{index}_relu{number}_"),
                )
            else:
                block.add(
                    nn.Conv2D(
                        channels,
                        3,
                        padding=1,
                        activation="relu",
                        in_channels=_inputs(architecture, index, number),
                        prefix=name,
                    )
                )
        block.add(nn.MaxPool2D(2, 2, prefix=f"vgg_block{index}_pool_"))
        net.add(block)
    units = _flat_size(architecture)
    for index, width in enumerate(architecture.dense):
        net.add(nn.Dense(width, activation="relu", in_units=units, prefix=f"vgg_dense{index}_"))
        net.add(nn.Dropout(architecture.dropout, prefix=f"vgg_dropout{index}_"))
        units = width
    net.add(nn.Dense(architecture.classes, in_units=units, prefix="vgg_output_"))
    return net


def _plain_convolution(mx: Any) -> Any:
    """Gluon's `Conv2D` without an activation, which computes in the type of its input whatever AMP wants."""
    from pipeline.runtime import plain_convolution

    class PlainConv2D(mx.gluon.nn.Conv2D):
        def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:
            return plain_convolution(F)(x, weight, name="fwd", **self._kwargs)

    return PlainConv2D


def parameters(net: Any) -> dict[str, Any]:
    """Structural name -> Gluon `Parameter`, in the network's order; the names of `.params` files."""
    return net._collect_params_with_prefix()


def layer_table(architecture: Architecture) -> list[Layer]:
    """Every layer in order, with shapes, parameter counts and multiply-adds, computed from the configuration."""
    layers: list[Layer] = []
    size = IMAGE_SIZE
    for index, (convolutions, channels) in enumerate(architecture.conv_arch):
        position = 0
        for number in range(convolutions):
            inputs = _inputs(architecture, index, number)
            weights = inputs * channels * 9
            bias = 0 if architecture.batch_norm else channels
            output = (channels, size, size)
            layers.append(
                Layer(f"{index}.{position}", "conv 3x3", index, output, weights + bias, weights * size * size)
            )
            position += 1
            if architecture.batch_norm:
                layers.append(Layer(f"{index}.{position}", "batch norm", index, output, 2 * channels, 0))
                position += 2  # its ReLU is a layer of its own
        size //= 2
        layers.append(Layer(f"{index}.{position}", "max pool 2x2", index, (channels, size, size), 0, 0))
    units, position = _flat_size(architecture), len(architecture.conv_arch)
    for width in [*architecture.dense, architecture.classes]:
        kind = "dense" if position < len(architecture.conv_arch) + 2 * len(architecture.dense) else "output"
        layers.append(Layer(str(position), kind, -1, (width,), units * width + width, units * width))
        units, position = width, position + 2
    return layers


def count_parameters(architecture: Architecture) -> int:
    """Learned parameters of the network (running statistics of batch normalisation not counted)."""
    return sum(layer.parameters for layer in layer_table(architecture))


def count_multiply_adds(architecture: Architecture) -> int:
    """Multiply-adds of one forward pass of one image."""
    return sum(layer.multiply_adds for layer in layer_table(architecture))


def _inputs(architecture: Architecture, block: int, number: int) -> int:
    if number > 0:
        return architecture.conv_arch[block][1]
    return architecture.conv_arch[block - 1][1] if block else CHANNELS


def _flat_size(architecture: Architecture) -> int:
    side = IMAGE_SIZE >> len(architecture.conv_arch)
    return architecture.conv_arch[-1][1] * side * side
