"""Is this machine fit for the work? Each check gives one line: what was found, or what is wrong and what to do.

Leaves nothing behind. MXNet is tried in a process of its own (`python -m pipeline.doctor`), where it may crash. The
checks that concern Luigi are in `tasks.doctor`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import model, runtime
from pipeline.config import Config, with_classes
from pipeline.errors import PipelineError, from_os_error
from pipeline.files import atomic_writer, human_size
from pipeline.process import parent
from pipeline.process.cores import cgroup_quota, given_threads, ignored_threads_warning, turn_lock, usable_cores
from pipeline.process.liveness import signal_name
from pipeline.process.spinning import TOLERATED, Load
from pipeline.storage import locks
from pipeline.workspace import MANIFEST, Workspace
from pipeline.workspace.freshness import Chain

#: Seconds that MXNet has to be imported and to compute something; a cold disk can need half a minute.
PROBE_SECONDS = 60

#: Seconds for which the machine's load is looked at.
LOAD_SECONDS = 0.3


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    text: str


def examine(chain: Chain) -> list[Finding]:
    """The results of all checks that do not concern Luigi."""
    return [
        finding("python", python),
        *machine_learning(chain.config),
        finding("threads", threads),
        finding("load", load),
        finding("shared memory", semaphores),
        finding("disk", disk, chain),
        finding("workspace", workspace, chain.workspace.root),
        finding("locks", locked, chain.workspace),
    ]


def finding(name: str, check: Callable[..., str], *about: Any) -> Finding:
    """The result of one check: a function that returns what it found, and raises an error for a problem."""
    try:
        return Finding(name, True, check(*about))
    except OSError as error:
        return Finding(name, False, str(from_os_error(error, "look at it")))
    except PipelineError as error:
        return Finding(name, False, str(error))


def python() -> str:
    """The interpreter's version and path."""
    runtime.check_python()
    return f"{platform.python_version()} ({sys.executable})"


def machine_learning(config: Config) -> list[Finding]:
    """MXNet with numpy, and the configured device, tried in a process of their own."""
    command = parent.module_command("pipeline.doctor", config.device, config.training.precision)
    # One thread is enough, and starts quickly whatever OMP_NUM_THREADS says.
    environment = {**parent.environment(), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=PROBE_SECONDS, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        text = f"not imported and tried within {PROBE_SECONDS} s: is the disk or the GPU driver stuck?"
        return [Finding("mxnet", False, text)]
    findings = [Finding(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode:
        # The last line of a traceback, or nothing when a signal killed it.
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"was killed by {signal_name(-done.returncode)}" if done.returncode < 0 else "failed"
        name = ["mxnet", "device"][min(len(findings), 1)]
        advice = "pip install --force-reinstall mxnet==1.9.1 'numpy>=1.23.5,<2'"
        findings.append(Finding(name, False, f"trying it {how}: {last}; try {advice}"))
    return findings


def threads() -> str:
    """How many threads a stage uses, and how many cores it may use."""
    if warning := ignored_threads_warning(os.environ):
        raise PipelineError(warning)
    cores, quota, given = usable_cores(), cgroup_quota(), given_threads(os.environ)
    of = f"{cores} usable cores (of {os.cpu_count()}" + (f", quota {quota:g} CPUs)" if quota else ", no quota)")
    if given is None:
        return f"{cores} threads on {of}"
    if given > cores:
        raise PipelineError(f"OMP_NUM_THREADS is {given} on {of}: threads slow each other down; unset it")
    return f"{given} threads (OMP_NUM_THREADS) on {of}"


def load() -> str:
    """How busy other processes keep the cores: never a problem, but the reason when a training is slow."""
    looked = Load()
    time.sleep(LOAD_SECONDS)
    others, cores = looked.others(), len(looked.cores)
    slower = others + usable_cores() > cores + TOLERATED
    told = f"other processes use {others:.1f} of {cores} cores" + (": trainings will be slower" if slower else "")
    holder = locks.holder(turn_lock())
    return told + (f"; {holder} trains on all of them: other trainings wait" if holder else "")


def semaphores() -> str:
    """Whether Luigi's workers can make semaphores, which Linux keeps in /dev/shm."""
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        text = f"/dev/shm: cannot make a semaphore there ({why}), which Luigi needs to run anything: mount it writable"
        raise PipelineError(text) from None
    return "semaphores can be made in /dev/shm"


def disk(chain: Chain) -> str:
    """Free space and free inodes, and what the configured run still needs."""
    folder, needed = _existing(chain.workspace.root), needed_bytes(chain)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    text = f"{human_size(free)} free in {folder}, this run needs about {human_size(needed)}"
    if free < needed:
        raise PipelineError(f"{text}: free some space, or choose another --workspace")
    if status.f_files and status.f_favail < 1000:
        raise PipelineError(f"{folder}: only {status.f_favail} more files can be made there: remove some")
    return text


def needed_bytes(chain: Chain) -> int:
    """Roughly what is still to be written: data set and archive, weights, optimizer state, checkpoints, export."""
    parameters = 4 * model.count_parameters(with_classes(chain.config, 10).architecture)  # what the data may say
    # Weights and momentum in `train`, in two checkpoints and the one being written; weights twice in `export`.
    run = chain.run()
    trained = run is not None and (run.stage("train") / MANIFEST).exists()
    network = 0 if trained else parameters * (2 + 3 * 2 + 2)
    images = 0 if chain.dataset_folder() else 20_000_000 if chain.config.data.is_sample else 400_000_000
    return network + images + 10_000_000


def workspace(root: Path) -> str:
    """Whether files can be written, replaced and locked in the workspace, or where it would be made."""
    folder = _existing(root)
    if not folder.is_dir():
        raise PipelineError(f"{folder} is a file: remove it, or choose another --workspace")
    path = folder / f".doctor.{os.getpid()}"
    try:
        with atomic_writer(path) as file:
            file.write(b"written")
            locks.try_lock(file.fileno(), folder)
        path.unlink()
    except OSError as error:
        what = "cannot write, lock and replace a file there"
        raise PipelineError(f"{folder}: {what}: {error.strerror}; choose another --workspace") from None
    made = "" if root.exists() else f" ({root} will be made)"
    return f"files in {folder} can be written and locked{made}"


def locked(workspace: Workspace) -> str:
    """Who works in the workspace now. A lock whose holder is gone is held by something that it started."""
    held = []
    for path in sorted(workspace.locks.glob("*.lock")):
        if owner := locks.holder(path):
            if owner.has_died:
                left = f"a process that {owner.pid} left behind"
                raise PipelineError(f"{path} is held by {left}: find it with fuser, and end it")
            held.append(f"{path.stem}: {owner}")
    return "; ".join(held) or "nobody is working in the workspace"


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


# --- the process that tries MXNet -----------------------------------------------------------------------------------


def probe(device: str, precision: str) -> Iterator[Finding]:
    """Import MXNet and compute on the device; ends with the first problem."""
    checks = {"mxnet": _mxnet, "device": lambda: _device(device, precision)}
    for name, check in checks.items():
        try:
            result = finding(name, check)
        except ImportError as error:
            text = f"cannot be imported: {error}; pip install 'numpy>=1.23.5,<2' mxnet==1.9.1"
            result = Finding(name, False, text)
        yield result
        if not result.ok:
            return


def _mxnet() -> str:
    mx = runtime.mxnet()
    import numpy

    mxnets, numpys = (Path(module.__path__[0]) for module in (mx, numpy))
    return f"{mx.__version__} ({mxnets}), numpy {numpy.__version__} ({numpys})"


def _device(device: str, precision: str) -> str:
    mx, devices = runtime.mxnet(), runtime.devices(device)
    for context in devices.contexts:
        images, weights = (mx.nd.ones(shape, ctx=context) for shape in ((2, 3, 5, 5), (4, 3, 3, 3)))
        sums = mx.nd.Convolution(images, weights, no_bias=True, kernel=(3, 3), num_filter=4).asnumpy()
        if abs(sums - 27).max() > 0.01:  # 3 x 3 x 3 ones
            raise PipelineError(f"{context}: computes a convolution wrong: its driver or the hardware is broken")
    runtime.resolve_precision(precision, devices)  # raises what a training would
    return f"{devices.name} computes (configured: device {device}, precision {precision})"


def main(arguments: list[str]) -> None:
    """Print the findings of `probe`, a JSON list a line."""
    # What libraries print must not come between the lines.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for result in probe(*arguments):
        print(json.dumps([result.name, result.ok, result.text]), file=out, flush=True)
    os._exit(0)  # MXNet's own shutdown can hang or crash


if __name__ == "__main__":
    main(sys.argv[1:])
