"""Which precision a training computes in. `auto` measures the network where the processor offers a choice.

Run as `python -m pipeline.training.precision`, it is the measurement: MXNet's bfloat16 mode cannot be switched off
again in a process, so this is one of its own and tries float32 first.
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

#: The measurement's process that `start_early` started, if any.
_early: list[subprocess.Popen[str]] = []

#: bfloat16 rounds to 8 bits, so it must be faster by this much to be worth it.
_WORTH_IT = 1.05

_CHOICES = ("float32", "bfloat16")
_STEPS, _TIMEOUT_SECONDS = 3, 360

#: Images of a measured step, at most. The ratio is about that of larger batches, and is known in seconds.
_IMAGES = 128


def start_early() -> None:
    """Start the measurement's process where it may be needed soon: it imports MXNet and waits to be told what for."""
    if runtime.cpu_has_bfloat16():
        _early.append(_start())


def choose(architecture: Architecture, training: Training, where: runtime.Devices, run: Run) -> tuple[str, str]:
    """The precision for a training of `run`, and why. Only `auto` on a CPU with bfloat16 instructions measures.

    What was measured is kept with the run's work, and a finished run that is resumed keeps its precision on the same
    processor, so that resuming never switches. Raises `DeviceError` for a precision that the device does not have.
    """
    try:
        return _choose(architecture, training, where, run)
    finally:
        while _early:  # it was not needed
            with _early.pop() as process:
                process.kill()


def _choose(architecture: Architecture, training: Training, where: runtime.Devices, run: Run) -> tuple[str, str]:
    if training.precision != "auto":
        return runtime.resolve_precision(training.precision, where), "as configured"
    if where.is_gpu:
        return runtime.resolve_precision("auto", where), "auto: by the GPU's compute capability"
    if not runtime.cpu_has_bfloat16():
        return "float32", "auto: this processor has no bfloat16 instructions"
    situation = {
        "cpu": runtime.cpu_name(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "device": where.name,
        "batch_size": training.batch_size,
        "amx": runtime.amx_in_use(),
    }
    earlier = _earlier(run, situation)
    if earlier:
        return earlier, "auto: as before on this processor"
    speeds = _speeds(architecture, training.batch_size)
    if len(speeds) < len(_CHOICES):  # killed, perhaps, or too slow beside others: the next start measures again
        return "float32", "auto: bfloat16 could not be measured"
    single, half = (speeds[name] for name in _CHOICES)
    chosen = "bfloat16" if half > _WORTH_IT * single else "float32"
    write_json(run.work / "precision.json", {**situation, "precision": chosen})
    return chosen, f"auto: measured bfloat16 {half:,.0f}, float32 {single:,.0f} images/s"


def _earlier(run: Run, situation: dict[str, Any]) -> str | None:
    """What was chosen for this run before in the same situation."""
    noted = read_json(run.work / "precision.json")
    finished = (manifest.read(run.stage("train")) or {}).get("details")
    for record, keys in ((noted, situation), (finished, ("cpu", "threads", "device"))):
        if isinstance(record, dict) and all(record.get(key) == situation[key] for key in keys):
            return next((name for name in _CHOICES if record.get("precision") == name), None)
    return None


def _speeds(architecture: Architecture, batch_size: int) -> dict[str, float]:
    """Images a second in training steps of each precision; those are missing that did not work."""
    about = {"architecture": msgspec.to_builtins(architecture), "batch_size": batch_size}
    with _early.pop() if _early else _start() as process:
        try:
            output, _ = process.communicate(json.dumps(about), _TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return {}
    found = (line.split() for line in output.splitlines())
    return {words[0]: float(words[1]) for words in found if len(words) == 2 and words[0] in _CHOICES}


def _start() -> subprocess.Popen[str]:
    command, pipe = parent.module_command("pipeline.training.precision", str(os.getpid())), subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def main() -> None:
    """Measure both precisions; reads a JSON description on standard input, prints a line for each."""
    liveness.end_with_parent(int(sys.argv[-1]))
    runtime.mxnet()
    about = json.loads(sys.stdin.read() or "null")
    if about is None:  # whoever started it has ended
        return
    architecture = msgspec.convert(about["architecture"], Architecture)
    runtime.adapt_to_load(lambda line: None)
    for precision in _CHOICES:  # AMP stays on once it is: float32 comes first
        print(precision, _speed(precision, architecture, min(about["batch_size"], _IMAGES)), flush=True)
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
