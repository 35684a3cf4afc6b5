"""Time of a training step by operator: which ones compute, and which only move memory.

Runs MXNet's profiler, with operators one by one, over steps of the configured network on random images. A large matrix
product shows the most that this machine computes in that precision.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

# Otherwise MXNet bulks operators and cannot time them individually.
os.environ |= {"MXNET_EXEC_BULK_EXEC_TRAIN": "0", "MXNET_EXEC_BULK_EXEC_INFERENCE": "0"}

import bench
import numpy as np

from pipeline import config as configuration
from pipeline import model, runtime
from pipeline.training.network import Network

#: The profiler's unused trace file; with `/dev/null` it would replace that device.
TRACE = str(bench.RESULTS / "operators-trace.json")

#: Kind -> parts of operator names; the first match wins.
KINDS = {
    "convolution": ("Convolution",),
    "dense layers, Muon's large products": ("FullyConnected",),
    "rest of Muon": ("linalg", "_eye", "dot", "broadcast_", "_mul_scalar", "_plus_scalar", "_rdiv_scalar", "elemwise_"),
    "batch norm": ("BatchNorm",),
    "activation": ("Activation", "LeakyReLU"),
    "pooling": ("Pooling",),
    "casts between float32 and bfloat16": ("amp_",),
    "copies": ("Copy",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(bench.ROOT / "config" / "vgg8.yaml"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="bfloat16")
    options = parser.parse_args()
    config = configuration.with_classes(configuration.load(options.config), 10)
    seconds, operators = profile(config, options)
    limit = matrix_product(options.precision)
    total = sum(operators.values())
    kinds: dict[str, float] = {}
    for name, value in operators.items():
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
        kinds[kind] = kinds.get(kind, 0.0) + value
    # Forward, gradient of the input, gradient of the weights: three products of the same size.
    layers = model.layer_table(config.architecture)
    convolutions = [layer for layer in layers if "conv" in layer.kind and not is_dense(layer, options.precision)]
    work = 6e-9 * sum(layer.multiply_adds for layer in convolutions) * config.training.batch_size
    rows = [(kind, f"{1000 * value:.1f}", f"{value / total:.0%}") for kind, value in by_size(kinds)]
    bench.table(
        f"{config.architecture.name}, {options.precision}, a step of {config.training.batch_size} images: "
        f"{1000 * seconds:.0f} ms with operators one by one",
        ("what", "ms a step", "share"),
        rows,
    )
    print(f"convolutions: {work / kinds['convolution']:,.0f} GFLOP/s; a large matrix product: {limit:,.0f} GFLOP/s")
    results = {"config": options.config, "seconds": seconds, "operators": operators, "gflops": [work, limit]}
    bench.finish("operators", results)


def is_dense(layer: model.Layer, precision: str) -> bool:
    """Whether a convolution is computed as a dense layer; see `model.build`."""
    return precision == "bfloat16" and layer.output[1:] == (2, 2)


def by_size(values: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: -item[1])


def profile(config: configuration.Config, options: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Return the seconds of a step and of each of its operators."""
    mx = runtime.mxnet()
    bench.RESULTS.mkdir(exist_ok=True)
    training, count = config.training, config.training.batch_size
    network = Network(config.architecture, training, runtime.devices("cpu"), options.precision)
    network.initialize(0)
    network.start_epoch([])
    random = np.random.default_rng(0)
    images = random.standard_normal((count, 3, 32, 32), dtype=np.float32)
    labels = random.integers(0, 10, count).astype(np.float32)
    for step in range(3):
        network.step(images, labels, 0.01, step)
    mx.nd.waitall()
    mx.profiler.set_config(profile_symbolic=True, profile_imperative=True, aggregate_stats=True, filename=TRACE)
    mx.profiler.set_state("run")
    started = time.monotonic()
    for step in range(options.steps):
        network.step(images, labels, 0.01, 3 + step)
    mx.nd.waitall()
    seconds = (time.monotonic() - started) / options.steps
    mx.profiler.set_state("stop")
    stats: Any = json.loads(mx.profiler.dumps(format="json"))
    times = stats["Time"]["operator"]
    return seconds, {name: value["Total"] / 1000 / options.steps for name, value in times.items()}


def matrix_product(precision: str, size: int = 4096) -> float:
    """Measure the GFLOP/s of multiplying two square matrices."""
    mx = runtime.mxnet()
    a, b = (mx.nd.random.uniform(shape=(size, size)) for _ in range(2))
    if precision != "float32":
        from mxnet.contrib.amp.amp import bfloat16

        a, b = (mx.nd.amp_cast(value, dtype=bfloat16) for value in (a, b))
    best = float("inf")
    for _ in range(5):
        started = time.monotonic()
        mx.nd.FullyConnected(a, b, num_hidden=size, no_bias=True).wait_to_read()
        best = min(best, time.monotonic() - started)
    return 2e-9 * size**3 / best


if __name__ == "__main__":
    main()
