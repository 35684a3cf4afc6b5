"""Check that this machine can run the pipeline. Each check reports one line: a result, or a problem and its fix.

Leaves nothing behind. `python -m pipeline.doctor` tests MXNet in a separate process, where it may crash. The checks of
Luigi are in `tasks.doctor`.
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

#: Time limit for importing MXNet and computing something, in seconds. With a cold disk it can take half a minute.
PROBE_SECONDS = 60

#: For how many seconds to measure the load of the machine.
LOAD_SECONDS = 0.3


@dataclass(frozen=True)
class Finding:
    """The result of one check. `text` says what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    text: str


def examine(chain: Chain) -> list[Finding]:
    """Run all checks that do not concern Luigi."""
    return [
        run_check("python", python),
        *machine_learning(chain.config),
        run_check("threads", threads),
        run_check("load", load),
        run_check("shared memory", check_semaphores),
        run_check("disk", disk, chain),
        run_check("workspace", workspace, chain.workspace.root),
        run_check("locks", locked, chain.workspace),
    ]


def run_check(name: str, check: Callable[..., str], *arguments: Any) -> Finding:
    """Call `check`, which returns what it found or raises an error for a problem."""
    try:
        return Finding(name, True, check(*arguments))
    except OSError as error:
        return Finding(name, False, str(from_os_error(error, "access it")))
    except PipelineError as error:
        return Finding(name, False, str(error))


def python() -> str:
    """Report the version and path of the interpreter."""
    runtime.check_python()
    return f"{platform.python_version()} ({sys.executable})"


def machine_learning(config: Config) -> list[Finding]:
    """Test MXNet with numpy, and the configured device, in a separate process."""
    command = parent.module_command("pipeline.doctor", config.device, config.training.precision)
    # One thread is enough, and starts quickly even if OMP_NUM_THREADS is large.
    environment = {**parent.environment(), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=PROBE_SECONDS, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        text = f"no result within {PROBE_SECONDS} s: is the disk or the GPU driver stuck?"
        return [Finding("mxnet", False, text)]
    findings = [Finding(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode:
        # The last line of the traceback; empty if a signal killed the process.
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"was killed by {signal_name(-done.returncode)}" if done.returncode < 0 else "failed"
        name = "device" if findings else "mxnet"
        advice = "pip install --force-reinstall mxnet==1.9.1 'numpy>=1.23.5,<2'"
        findings.append(Finding(name, False, f"the test {how}: {last}; try {advice}"))
    return findings


def threads() -> str:
    """Report how many threads a stage uses, and how many cores it may use."""
    if warning := ignored_threads_warning(os.environ):
        raise PipelineError(warning)
    cores, quota, given = usable_cores(), cgroup_quota(), given_threads(os.environ)
    cores_text = f"{cores} usable cores (of {os.cpu_count()}" + (f", quota {quota:g} CPUs)" if quota else ", no quota)")
    if given is None:
        return f"{cores} threads on {cores_text}"
    if given > cores:
        raise PipelineError(f"OMP_NUM_THREADS is {given} on {cores_text}: threads slow each other down; unset it")
    return f"{given} threads (OMP_NUM_THREADS) on {cores_text}"


def load() -> str:
    """Report how busy other processes keep the cores. Never a problem, but it can explain a slow training."""
    measured = Load()
    time.sleep(LOAD_SECONDS)
    others, cores = measured.others(), len(measured.cores)
    slower = others + usable_cores() > cores + TOLERATED
    text = f"other processes use {others:.1f} of {cores} cores" + (": trainings will be slower" if slower else "")
    holder = locks.holder(turn_lock())
    return text + (f"; {holder} trains on all of them: other trainings wait" if holder else "")


def check_semaphores() -> str:
    """Check that Luigi's workers can create semaphores, which Linux keeps in /dev/shm."""
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        text = f"/dev/shm: cannot create a semaphore ({why}), and Luigi cannot run without one: mount it writable"
        raise PipelineError(text) from None
    return "semaphores can be created in /dev/shm"


def disk(chain: Chain) -> str:
    """Check that there is enough free space, and free inodes, for what the configured run still writes."""
    folder, needed = _existing(chain.workspace.root), needed_bytes(chain)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    text = f"{human_size(free)} free in {folder}, this run needs about {human_size(needed)}"
    if free < needed:
        raise PipelineError(f"{text}: free some space, or choose another --workspace")
    if status.f_files and status.f_favail < 1000:
        raise PipelineError(f"{folder}: only {status.f_favail} more files can be created there: remove some")
    return text


def needed_bytes(chain: Chain) -> int:
    """Estimate the bytes still to be written: data set, archive, weights, optimizer state, checkpoints, export."""
    # Assumes 10 classes as long as the data set is unknown.
    parameters = 4 * model.count_parameters(with_classes(chain.config, 10).architecture)
    # Weights and momentum: in `train`, in two checkpoints, and in a third being written. Weights: twice in `export`.
    run = chain.run()
    trained = run is not None and (run.stage("train") / MANIFEST).exists()
    network = 0 if trained else parameters * (2 + 3 * 2 + 2)
    images = 0 if chain.dataset_folder() else 20_000_000 if chain.config.data.is_sample else 400_000_000
    return network + images + 10_000_000


def workspace(root: Path) -> str:
    """Check that files can be written, replaced and locked in the workspace, or where it would be created."""
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
        problem = "cannot write, lock and replace a file there"
        raise PipelineError(f"{folder}: {problem}: {error.strerror}; choose another --workspace") from None
    created = "" if root.exists() else f" ({root} will be created)"
    return f"files in {folder} can be written and locked{created}"


def locked(workspace: Workspace) -> str:
    """Report who is working in the workspace. If a lock's holder has died, a process that it started still holds it."""
    held = []
    for path in sorted(workspace.locks.glob("*.lock")):
        if owner := locks.holder(path):
            if owner.has_died:
                left = f"a process that {owner.pid} left behind"
                raise PipelineError(f"{path} is held by {left}: find it with fuser, and end it")
            held.append(f"{path.stem}: {owner}")
    return "; ".join(held) or "nobody is working in the workspace"


def _existing(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


# --- the process that tests MXNet -----------------------------------------------------------------------------------


def probe(device: str, precision: str) -> Iterator[Finding]:
    """Import MXNet and compute on the device, up to the first problem."""
    checks = {"mxnet": _mxnet, "device": lambda: _device(device, precision)}
    for name, check in checks.items():
        try:
            result = run_check(name, check)
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
            raise PipelineError(f"{context}: computes a convolution incorrectly: its driver or the hardware is broken")
    runtime.resolve_precision(precision, devices)  # raises the same errors as a training
    return f"{devices.name} computes (configured: device {device}, precision {precision})"


def main(arguments: list[str]) -> None:
    """Print the findings of `probe`, one JSON list per line."""
    # Send everything that libraries print to stderr, so that stdout holds only findings.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for result in probe(*arguments):
        print(json.dumps([result.name, result.ok, result.text]), file=out, flush=True)
    os._exit(0)  # MXNet's own shutdown can hang or crash


if __name__ == "__main__":
    main(sys.argv[1:])
