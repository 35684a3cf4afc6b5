"""Training speed side by side: this plugin under Luigi, a bare MXNet loop, the published loop, and PyTorch.

All use the same network, batch size and cores, and run in turns, each in its own process. Reports the median images per
second over rounds, without the first, slower steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench

from pipeline import config as configuration
from pipeline.process import cores

LOOPS = Path(__file__).resolve().parent / "loops"


def main() -> None:
    options = _options()
    config = configuration.to_dict(configuration.load(options.config))
    config["training"]["batch_size"] = options.batch
    measured: dict[str, list[float]] = {}
    waited: list[float] = []
    for number in range(options.rounds):
        for name, measure in _candidates(options, config, waited).items():
            speed = measure()
            if speed is not None:
                measured.setdefault(name, []).append(speed)
                print(f"round {number + 1}: {name}: {speed:,.0f} images/s", flush=True)
    _report(options, config, measured)
    print(f"the plugin waited for input {bench.median(waited):.2%} of the time (at most {max(waited):.2%})")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(bench.ROOT / "config" / "vgg11.yaml"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="length of the other loops, per round")
    parser.add_argument("--precisions", default="float32,bfloat16", help="bfloat16 is slow on CPUs without it")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python that has torch, maybe of another environment"
    )
    return parser.parse_args()


def _candidates(options: argparse.Namespace, config: dict[str, Any], waited: list[float]) -> dict[str, Any]:
    """Map each candidate to a function that measures it once."""
    candidates: dict[str, Any] = {}
    threads = str(cores.usable_cores())
    for precision in options.precisions.split(","):
        candidates[f"this plugin, {precision}"] = lambda p=precision: _plugin(config, p, waited)
        candidates[f"bare MXNet loop, {precision}"] = lambda p=precision: _loop("bare", config, options, p, threads)
        if _has_torch(options.torch_python):
            candidates[f"PyTorch, {precision}"] = lambda p=precision: _loop("pytorch", config, options, p, threads)
    candidates["published loop, threads set"] = lambda: _loop("published", config, options, "float32", threads)
    candidates["published loop, as it is"] = lambda: _loop("published", config, options, "float32", None)
    return candidates


def _plugin(config: dict[str, Any], precision: str, waited: list[float]) -> float:
    """Return images per second of the last epoch; append the share of time spent waiting for input to `waited`."""
    training = {**config["training"], "epochs": 2, "precision": precision}
    # Whole batches only, like the loops: hold out what does not fill one of the 5,000 images.
    training["validation_images"] = 5_000 - (5_000 - 500) // training["batch_size"] * training["batch_size"]
    value = {**config, "data": bench.SAMPLE, "training": training}
    with tempfile.TemporaryDirectory() as folder:
        path = bench.write_config(Path(folder) / "bench.yaml", value)
        workspace = Path(folder) / "artifacts"
        bench.luigi("TrainVGG", "--config", str(path), "--workspace", str(workspace))
        details = bench.read_manifest(workspace, "train")["details"]
        waited.append(details["input_seconds"] / details["seconds"])
        return float(details["last_epoch"]["images_per_second"])


def _loop(
    name: str, config: dict[str, Any], options: argparse.Namespace, precision: str, threads: str | None
) -> float | None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    about = {
        "architecture": config["architecture"],
        "training": config["training"],
        "batch": options.batch,
        "seconds": options.seconds,
        "precision": precision,
    }
    python = options.torch_python if name == "pytorch" else sys.executable
    result = subprocess.run(
        [python, str(LOOPS / f"{name}.py")],
        input=json.dumps(about),
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        print(f"{name}, {precision}: failed: {result.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return float(json.loads(result.stdout.splitlines()[-1])["images_per_second"])


def _has_torch(python: str) -> bool:
    return subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0


def _report(options: argparse.Namespace, config: dict[str, Any], measured: dict[str, list[float]]) -> None:
    medians = {name: bench.median(values) for name, values in measured.items()}
    rows = []
    for name, value in medians.items():
        own = medians.get(f"this plugin, {name.rpartition(', ')[2]}", medians["this plugin, float32"])
        rows.append((name, f"{value:,.0f}", bench.spread(measured[name], 0), f"{own / value:.2f}"))
    title = f"{config['architecture']['name']}, batch {options.batch}, median of {options.rounds} rounds"
    bench.table(title, ("what", "images/s", "range", "plugin / this"), rows)
    bench.finish("throughput", {"config": options.config, "batch": options.batch, "images_per_second": measured})


if __name__ == "__main__":
    main()
