"""Is this machine fit for the work? Each check gives one line: what was found, or what is wrong and what to do.

Changes nothing but for a file that it writes into the workspace and removes. MXNet is imported and made to compute in
a process of its own (`python -m pipeline.doctor`), where it may crash. What concerns Luigi is in `tasks.doctor`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import model
from pipeline.errors import PipelineError
from pipeline.files import human_size
from pipeline.process import parent
from pipeline.process.cores import cgroup_quota, given_threads, misread_threads, usable_cores
from pipeline.process.spinning import TOLERATED, Load
from pipeline.retraining import registry
from pipeline.storage import locks
from pipeline.workspace import Workspace, events, manifest
from pipeline.workspace.freshness import Chain

#: Seconds that MXNet has to be imported and to compute something; a cold disk can need half a minute.
PROBE_SECONDS = 60

#: Seconds for which the machine's load is looked at.
LOAD_SECONDS = 0.3

#: Seconds that two clocks may differ.
CLOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Finding:
    """The answer of one check."""

    name: str
    ok: bool
    text: str


def examine(chain: Chain) -> list[Finding]:
    """All checks that do not concern Luigi."""
    checks: tuple[Callable[[Chain], Finding], ...] = (
        threads,
        load,
        semaphores,
        disk,
        workspace,
        locked,
        current_model,
        clock,
    )
    return [python(sys.version_info[:2]), *machine_learning(chain), *(check(chain) for check in checks)]


def python(version: tuple[int, int]) -> Finding:
    """The interpreter's version, as (major, minor)."""
    found = f"{platform.python_version()} ({sys.executable})"
    if not (3, 10) <= version <= (3, 12):
        return Finding("python", False, f"{found} is not supported by mxnet 1.9.1: use Python 3.10, 3.11 or 3.12")
    return Finding("python", True, found)


def machine_learning(chain: Chain) -> list[Finding]:
    """numpy, MXNet and the configured device, tried in a process of their own."""
    command = parent.module_command("pipeline.doctor", chain.config.device, chain.config.training.precision)
    names = ["numpy", "mxnet", "device"]
    # One thread is enough, and starts in a moment whatever OMP_NUM_THREADS says.
    environment = {**parent.environment(), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=PROBE_SECONDS, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        text = f"importing and trying it took more than {PROBE_SECONDS} s: is the disk or the GPU driver stuck?"
        return [Finding("mxnet", False, text)]
    findings = [Finding(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode:
        # The last line of a traceback, or nothing when it died of a signal.
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"died of {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "failed"
        where = names[min(len(findings), len(names) - 1)]
        advice = "pip install --force-reinstall mxnet==1.9.1 'numpy>=1.23.5,<2'"
        findings.append(Finding(where, False, f"trying it {how}: {last}; try {advice}"))
    return findings


def threads(chain: Chain, environment: Mapping[str, str] = os.environ) -> Finding:
    """How many threads a stage gets, against the cores that it may use."""
    cores, quota = usable_cores(), cgroup_quota()
    of = f"{cores} usable cores (of {os.cpu_count()}" + (f", quota {quota:g} CPUs)" if quota else ", no quota)")
    if misread := misread_threads(environment):
        return Finding("threads", False, misread)
    given = given_threads(environment)
    if given is None:
        return Finding("threads", True, f"{cores} threads on {of}")
    if given > cores:
        return Finding(
            "threads", False, f"OMP_NUM_THREADS is {given} on {of}: threads get in each other's way; unset it"
        )
    return Finding("threads", True, f"{given} threads (OMP_NUM_THREADS) on {of}")


def load(chain: Chain) -> Finding:
    """What other processes leave of the cores: no fault, but the reason when a training is slow."""
    looked = Load()
    time.sleep(LOAD_SECONDS)
    others, cores = looked.others(), len(looked.cores)
    if others is None:
        return Finding("load", True, "this machine does not tell how busy its cores are")
    text = f"other processes use {others:.1f} of {cores} cores"
    if others + usable_cores() > cores + TOLERATED:
        text += ": a training gets its share of them, and is slower than it could be"
    return Finding("load", True, text)


def semaphores(chain: Chain | None = None) -> Finding:
    """Whether Python can make what Luigi's workers need of the system, which Linux keeps in /dev/shm."""
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        text = f"/dev/shm: cannot make a semaphore there ({why}), which Luigi needs to run anything: mount it writable"
        return Finding("shared memory", False, text)
    return Finding("shared memory", True, "semaphores can be made in /dev/shm")


def disk(chain: Chain) -> Finding:
    """Free space and files against what the configured run will need."""
    folder = _existing(chain.workspace.root)
    needed, status = needed_bytes(chain), os.statvfs(folder)
    free = shutil.disk_usage(folder).free
    text = f"{human_size(free)} free in {folder}, this run needs about {human_size(needed)}"
    if free < needed:
        return Finding("disk", False, f"{text}: free some space, or choose another --workspace")
    if status.f_files and status.f_favail < 1000:
        return Finding("disk", False, f"{folder}: only {status.f_favail} more files can be made there: remove some")
    return Finding("disk", True, text)


def needed_bytes(chain: Chain) -> int:
    """About what is still to be written: data set and archive, weights, momentum, checkpoints, exported model."""
    parameters = 4 * model.count_parameters(chain.config.architecture)
    # Weights and momentum in `train`, in two checkpoints and the one being written; weights twice in `export`.
    run = chain.run()
    trained = run is not None and (run.stage("train") / "manifest.json").exists()
    network = 0 if trained else parameters * (2 + 3 * 2 + 2)
    images = 0 if chain.dataset_folder() else 20_000_000 if chain.config.data.is_sample else 400_000_000
    return network + images + 10_000_000


def workspace(chain: Chain) -> Finding:
    """Whether files can be written, replaced and locked in the workspace (or where it would be made)."""
    root = chain.workspace.root
    folder = _existing(root)
    if not folder.is_dir():
        return Finding("workspace", False, f"{folder} is a file: remove it, or choose another --workspace")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.", delete=False) as file:
            try:
                file.write(b"written")
                os.fsync(file.fileno())
                locks.try_lock(file.fileno(), folder)
                os.replace(file.name, f"{file.name}2")
            finally:
                for name in (file.name, f"{file.name}2"):
                    Path(name).unlink(missing_ok=True)
    except OSError as error:
        what = "cannot write, lock and replace a file there"
        return Finding("workspace", False, f"{folder}: {what}: {error.strerror}; choose another --workspace")
    except PipelineError as error:
        return Finding("workspace", False, str(error))
    made = "" if root.exists() else f" ({root} will be made)"
    return Finding("workspace", True, f"{folder} can be written, and files locked in it{made}")


def locked(chain: Chain) -> Finding:
    """Who works in the workspace now; a lock whose holder is gone means that something it started lives on."""
    held = []
    for path in sorted(chain.workspace.lock("x").parent.glob("*.lock")):
        owner = locks.holder(path)
        if owner is None:
            continue
        if owner.get("host") == platform.node() and locks.is_gone(owner.get("pid")):
            text = f"{path} is held by what process {owner.get('pid')} left behind: find it with fuser, and end it"
            return Finding("locks", False, text)
        held.append(f"{path.stem}: {locks.describe(owner)}")
    return Finding("locks", True, "; ".join(held) or "nobody is working in the workspace")


def current_model(chain: Chain) -> Finding:
    """Whether the promoted model is still there as it was promoted."""
    try:
        pointer = registry.read(chain.workspace.current(chain.config))
    except PipelineError as error:
        return Finding("current", False, str(error))
    if pointer is None:
        return Finding("current", True, "no model was promoted yet")
    problems = registry.problems(chain.workspace, pointer)
    if problems:
        return Finding("current", False, f"{'; '.join(problems)}: restore it, or run Rollback")
    folder = registry.run_of(chain.workspace, pointer).stage("export")
    if chain.workspace.mirror:
        chain.workspace.mirror.know_folders([folder])
    exported = manifest.read(folder)
    if exported is None or manifest.file_problems(folder, exported, chain.workspace.size):
        given = f" with --generation {pointer.generation}" if pointer.generation else ""
        return Finding("current", False, f"{pointer.run}/export is missing or damaged: run Export{given}")
    return Finding("current", True, f"{pointer.run}, accuracy {pointer.accuracy:.2%}, since {pointer.since}")


def clock(chain: Chain) -> Finding:
    """Whether this machine's clock agrees with the workspace's file system and with what was logged before."""
    moment = time.time()
    told = [event["time"] for event in events.read(chain.workspace) if isinstance(event.get("time"), str)]
    limit = _iso(moment + CLOCK_SECONDS)
    if told and max(told) > limit:
        text = f"it is {_iso(moment)} here, but events.jsonl has an event of {max(told)}: set the clock (UTC, NTP)"
        return Finding("clock", False, text)
    skew = _file_clock(chain.workspace)
    if skew is not None and abs(skew) > CLOCK_SECONDS:
        text = f"the file system of {chain.workspace.root} is {skew:+.0f} s away from this machine: set the clock (NTP)"
        return Finding("clock", False, text)
    return Finding("clock", True, f"{_iso(moment)}, as the workspace's file system and its log have it")


# --- helpers ------------------------------------------------------------------------------------------------------


def _file_clock(where: Workspace) -> float | None:
    """Seconds that the file system's clock is ahead of this machine's; None when nothing can be written."""
    folder = _existing(where.root)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.") as file:
            file.write(b"x")
            file.flush()
            return os.stat(file.name).st_mtime - time.time()
    except OSError:
        return None


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# --- the process that tries MXNet -----------------------------------------------------------------------------------


def probe(device: str, precision: str) -> Iterator[Finding]:
    """Import numpy and MXNet and compute on the device; ends at the first that does not work."""
    from importlib import metadata

    from pipeline import runtime

    trying = "numpy"
    try:
        import numpy

        installed = metadata.version("numpy")
        if int(installed.partition(".")[0]) >= 2:
            yield Finding("numpy", False, f"{installed} is too new for mxnet 1.9.1: pip install 'numpy>=1.23.5,<2'")
            return
        yield Finding("numpy", True, f"{numpy.__version__} ({Path(numpy.__file__).parent})")
        trying = "mxnet"
        mx = runtime.mxnet()
        yield Finding("mxnet", True, f"{mx.__version__} ({Path(mx.__file__).parent})")
        trying = "device"
        devices = runtime.devices(device)
        wrong = [f"{context}: {why}" for context in devices.contexts if (why := _miscomputes(mx, numpy, context))]
        if wrong:
            yield Finding("device", False, "; ".join(wrong))
            return
        runtime.resolve_precision(precision, devices)  # raises what a training would
        where = f"{devices.name} computes (configured: device {device}, precision {precision})"
        yield Finding("device", True, where)
    except PipelineError as error:
        yield Finding(trying, False, str(error))
    except ImportError as error:
        yield Finding(trying, False, f"cannot be imported: {error}; pip install 'numpy>=1.23.5,<2' mxnet==1.9.1")


def _miscomputes(mx: object, numpy: object, context: object) -> str:
    """What is wrong with a convolution on the device, compared with numpy's; empty when nothing is."""
    images = numpy.arange(2 * 3 * 5 * 5, dtype="float32").reshape(2, 3, 5, 5) / 100  # type: ignore[attr-defined]
    weights = numpy.arange(4 * 3 * 3 * 3, dtype="float32").reshape(4, 3, 3, 3) / 100  # type: ignore[attr-defined]
    place = {"ctx": context}
    result = mx.nd.Convolution(  # type: ignore[attr-defined]
        mx.nd.array(images, **place),  # type: ignore[attr-defined]
        mx.nd.array(weights, **place),  # type: ignore[attr-defined]
        no_bias=True,
        kernel=(3, 3),
        num_filter=4,
    ).asnumpy()
    windows = numpy.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(2, 3))  # type: ignore[attr-defined]
    expected = numpy.einsum("ncyxij,kcij->nkyx", windows, weights)  # type: ignore[attr-defined]
    if numpy.allclose(result, expected, rtol=1e-3):  # type: ignore[attr-defined]
        return ""
    return "computes a convolution wrong: its driver or the hardware is broken"


def main(arguments: list[str]) -> int:
    """Print the findings of `probe`, a JSON list a line."""
    # What libraries print must not come between the lines.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for finding in probe(*arguments):
        print(json.dumps(list(asdict(finding).values())), file=out, flush=True)
    os._exit(0)  # MXNet's own shutdown can hang or crash


if __name__ == "__main__":
    main(sys.argv[1:])
