"""Choose the precision of a training. `auto` measures the network if the processor offers a choice.

`python -m pipeline.training.precision` runs the measurement, float32 first, in its own process, because MXNet's
bfloat16 mode cannot be switched off again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import msgspec
import numpy as np

from pipeline import runtime
from pipeline.config import Architecture, Training
from pipeline.files import read_json, write_json
from pipeline.process import liveness, parent
from pipeline.workspace import Run, manifest

#: The measurement process that `start_early` started, if any.
_early: list[subprocess.Popen[str]] = []

#: bfloat16 must be this much faster to be worth its rounding to 8 bits.
_MIN_SPEEDUP = 1.05

_CHOICES = ("float32", "bfloat16")
_STEPS, _TIMEOUT_SECONDS = 3, 360

#: Largest batch of the measurement. It takes seconds, and the ratio is about that of larger batches.
_MAX_BATCH = 128


def start_early() -> None:
    """If a measurement may be needed, start its process, which imports MXNet and then waits for its request."""
    if runtime.cpu_has_bfloat16():
        _early.append(_start())


def choose(architecture: Architecture, training: Training, devices: runtime.Devices, run: Run) -> tuple[str, str]:
    """Return the precision for a training of `run` and the reason. Measures for `auto` on a CPU with bfloat16 only.

    Records a measured choice in the run's work folder, and keeps that of a finished run on the same processor, so that
    resuming never switches. Raises `DeviceError` if the device does not support the configured precision.
    """
    try:
        return _choose(architecture, training, devices, run)
    finally:
        while _early:  # it was not needed
            with _early.pop() as process:
                process.kill()


def _choose(architecture: Architecture, training: Training, devices: runtime.Devices, run: Run) -> tuple[str, str]:
    if training.precision != "auto":
        return runtime.resolve_precision(training.precision, devices), "as configured"
    if devices.is_gpu:
        return runtime.resolve_precision("auto", devices), "auto: by the GPU's compute capability"
    if not runtime.cpu_has_bfloat16():
        return "float32", "auto: this processor has no bfloat16 instructions"
    conditions = {
        "cpu": runtime.cpu_name(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "device": devices.name,
        "batch_size": training.batch_size,
        "amx": runtime.amx_in_use(),
    }
    recorded = _recorded(run, conditions)
    if recorded:
        return recorded, "auto: as before on this processor"
    speeds = _speeds(architecture, training.batch_size)
    if len(speeds) < len(_CHOICES):  # the process was killed or too slow beside others: measure again next time
        return "float32", "auto: bfloat16 could not be measured"
    single, half = (speeds[name] for name in _CHOICES)
    chosen = "bfloat16" if half > _MIN_SPEEDUP * single else "float32"
    write_json(run.work / "precision.json", {**conditions, "precision": chosen})
    return chosen, f"auto: measured bfloat16 {half:,.0f}, float32 {single:,.0f} images/s"


def _recorded(run: Run, conditions: dict[str, Any]) -> str | None:
    """The earlier choice for this run under the same conditions, if any."""
    measured = read_json(run.work / "precision.json")
    finished = (manifest.read(run.stage("train")) or {}).get("details")
    for record, keys in ((measured, conditions), (finished, ("cpu", "threads", "device"))):
        if isinstance(record, dict) and all(record.get(key) == conditions[key] for key in keys):
            return next((name for name in _CHOICES if record.get("precision") == name), None)
    return None


def _speeds(architecture: Architecture, batch_size: int) -> dict[str, float]:
    """Training speed of each precision in images/s. Precisions that failed are missing."""
    request = {"architecture": msgspec.to_builtins(architecture), "batch_size": batch_size}
    with _early.pop() if _early else _start() as process:
        try:
            output, _ = process.communicate(json.dumps(request), _TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return {}
    lines = (line.split() for line in output.splitlines())
    return {words[0]: float(words[1]) for words in lines if len(words) == 2 and words[0] in _CHOICES}


def _start() -> subprocess.Popen[str]:
    command, pipe = parent.module_command("pipeline.training.precision", str(os.getpid())), subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def main() -> None:
    """Measure both precisions. Reads a JSON request from standard input and prints one line for each."""
    liveness.end_with_parent(int(sys.argv[-1]))
    runtime.mxnet()
    request = json.loads(sys.stdin.read() or "null")
    if request is None:  # the training has exited
        return
    architecture = msgspec.convert(request["architecture"], Architecture)
    runtime.adapt_to_load(lambda line: None)
    for precision in _CHOICES:  # float32 first, because AMP cannot be switched off
        print(precision, _speed(precision, architecture, min(request["batch_size"], _MAX_BATCH)), flush=True)
    os._exit(0)


def _speed(precision: str, architecture: Architecture, count: int) -> float:
    from pipeline.training.network import Network

    network = Network(architecture, Training(epochs=1, batch_size=count), runtime.devices("cpu"), precision)
    network.initialize(0)
    network.start_epoch([])
    generator = np.random.default_rng(0)
    images = generator.random((count, 3, 32, 32), dtype=np.float32)
    labels = generator.integers(0, architecture.outputs, count).astype(np.float32)
    started = 0.0
    for step in range(1 + _STEPS):
        if step == 1:  # the first step chooses algorithms and plans memory
            network.sums()
            started = time.monotonic()
        network.step(images, labels, 1e-3, step)
    network.sums()
    return _STEPS * count / (time.monotonic() - started)


if __name__ == "__main__":
    main()
