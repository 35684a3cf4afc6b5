"""How many threads a stage may use, decided before MXNet is loaded. Trainings that use all cores take turns."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.process import spinning
from pipeline.storage import locks

#: Accept up to this many threads, or as many as the machine has cores if that is more; with too many, MXNet does not
#: start. More threads than cores are fine: a training from a large machine then resumes bit for bit on a small one.
MAX_THREADS = 256


def usable_cores() -> int:
    """Cores available to this process: its affinity mask, capped by the cgroup quota and Slurm's allocation."""
    limits = [math.ceil(limit) for limit in (cgroup_quota(), slurm_grant(os.environ)) if limit]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]))


def slurm_grant(environment: Mapping[str, str]) -> int | None:
    """Cores that Slurm allocated to this task; None outside a job or if unknown."""
    if "SLURM_STEP_ID" not in environment:
        return None
    single = environment.get("SLURM_STEP_NUM_TASKS") == "1"
    granted = environment.get("SLURM_CPUS_PER_TASK") or (environment.get("SLURM_CPUS_ON_NODE") if single else None)
    return int(granted) if granted and granted.isdigit() else None


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPU quota of the cgroup and its ancestors (v2 `cpu.max`, v1 `cpu.cfs_quota_us`); None without a limit."""
    return min(filter(None, map(_limit, _cgroup_folders(root, process))), default=None)


def given_threads(environment: Mapping[str, str]) -> int | None:
    """OMP_NUM_THREADS, or the first number of a list in it; None if it is unset or invalid."""
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    number = int(first) if first.isascii() and first.isdecimal() and len(first) < 6 else 0
    return number if 1 <= number <= max(MAX_THREADS, os.cpu_count() or 1) else None


def ignored_threads_warning(environment: Mapping[str, str]) -> str | None:
    """Warning about an invalid OMP_NUM_THREADS, which is ignored; None if it is valid or unset."""
    given = environment.get("OMP_NUM_THREADS")
    if not given or given_threads(environment):
        return None
    return f"OMP_NUM_THREADS: found {given!r}, expected a number of threads: unset it; using {usable_cores()}"


def thread_environment(environment: Mapping[str, str], cores: int | None = None) -> dict[str, str]:
    """OpenMP variables for a stage's process: number of threads and wait policy. The user's own settings win.

    MXNet's default of half the logical cores halves the speed on small machines. OMP_DYNAMIC is off because results
    depend on the number of threads.
    """
    threads = given_threads(environment) or cores or usable_cores()
    return {"OMP_NUM_THREADS": str(threads), "OMP_DYNAMIC": "false", **spinning.environment(environment)}


def turn_lock() -> Path:
    """Path of the lock that this user's processes share if they run on the same cores."""
    cores = sorted(os.sched_getaffinity(0))
    key = str(cores)
    if usable_cores() < len(cores):  # a cgroup or a job limits this process to a share of them
        key += Path("/proc/self/cgroup").read_text() + os.environ.get("SLURM_JOB_ID", "")
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    # /dev/shm is local to the machine, and systemd units with a private /tmp see it too.
    return Path("/dev/shm") / f"luigi-vgg-{os.getuid()}" / f"cores-{name}.lock"


@contextlib.contextmanager
def take_turn(label: str, processes: int, on_wait: locks.OnWait) -> Iterator[list[int]]:
    """If a training in `processes` local processes uses all cores, wait until no other training does.

    Yields the file descriptors (locks) that those processes must inherit. Calls `on_wait` at every poll with a line
    that names the holder. Does not wait if the lock cannot be created. Fewer threads instead would change the results.
    """
    threads = given_threads(os.environ)
    with contextlib.ExitStack() as held:
        descriptors = []
        if threads is None or threads * processes >= usable_cores():
            with contextlib.suppress(OSError, WorkspaceError):
                path = turn_lock()
                path.parent.mkdir(mode=0o700, exist_ok=True)
                if path.parent.lstat().st_uid == os.getuid():  # another user may have planted it
                    descriptors.append(held.enter_context(locks.hold(path, label, wait=True, on_wait=on_wait)))
        yield descriptors


def _cgroup_folders(root: Path, process: Path) -> set[Path]:
    folders = {root, root / "cpu"}
    with contextlib.suppress(OSError):
        for line in process.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                own = (root / "cpu" if controllers else root) / path.lstrip("/")
                folders |= {own, *own.parents}
    return folders


def _limit(folder: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # missing, or "max"
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            if quota > 0:
                return quota / period
    return None
