"""How many threads a stage may use, decided before MXNet is loaded; trainings on all cores take turns."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.process import spinning
from pipeline.storage import locks

#: More threads than this, or than the machine has cores, are a mistake: MXNet would not start. Fewer may be more than
#: there are cores, so that a training of a large machine resumes bit for bit on a small one.
MOST_THREADS = 256


def usable_cores() -> int:
    """Cores that this process may really use: its affinity mask, capped by the cgroup's quota and Slurm's grant."""
    limits = [math.ceil(limit) for limit in (cgroup_quota(), slurm_grant(os.environ)) if limit]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]))


def slurm_grant(environment: Mapping[str, str]) -> int | None:
    """Cores that Slurm granted to this task, or None outside of a job and where it is unknown."""
    if "SLURM_STEP_ID" not in environment:
        return None
    alone = environment.get("SLURM_STEP_NUM_TASKS") == "1"
    granted = environment.get("SLURM_CPUS_PER_TASK") or (environment.get("SLURM_CPUS_ON_NODE") if alone else None)
    return int(granted) if granted and granted.isdigit() else None


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs granted by the cgroup and those above it (v2 `cpu.max`, v1 `cpu.cfs_quota_us`); None without a limit."""
    return min(filter(None, map(_limit, _cgroup_folders(root, process))), default=None)


def given_threads(environment: Mapping[str, str]) -> int | None:
    """The number of threads in OMP_NUM_THREADS, of a list the first; None where it is unset or no sensible number."""
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    number = int(first) if first.isascii() and first.isdecimal() and len(first) < 6 else 0
    return number if 1 <= number <= max(MOST_THREADS, os.cpu_count() or 1) else None


def misread_threads(environment: Mapping[str, str]) -> str | None:
    """A warning for an OMP_NUM_THREADS that is ignored; None when there is none."""
    given = environment.get("OMP_NUM_THREADS")
    if not given or given_threads(environment):
        return None
    return f"OMP_NUM_THREADS: found {given!r}, expected a number of threads: unset it; using {usable_cores()}"


def thread_environment(environment: Mapping[str, str], cores: int | None = None) -> dict[str, str]:
    """OpenMP's variables for a stage's process: how many threads, and how they wait; what the user set wins.

    MXNet takes half of the logical cores by default, which halves the speed on small machines. As many as there are
    usable `cores`, and always as many: results depend on the number.
    """
    threads = given_threads(environment) or cores or usable_cores()
    return {"OMP_NUM_THREADS": str(threads), "OMP_DYNAMIC": "false", **spinning.environment(environment)}


def turn_lock() -> Path:
    """The lock of the cores that this process may use: one file for all processes of this user that have the same.

    In memory, which is this machine's own and which a systemd unit with a private /tmp sees, too.
    """
    cores = sorted(os.sched_getaffinity(0))
    which = str(cores)
    if usable_cores() < len(cores):  # a share of them, which belongs to a cgroup or to a job
        which += Path("/proc/self/cgroup").read_text() + os.environ.get("SLURM_JOB_ID", "")
    name = hashlib.sha256(which.encode()).hexdigest()[:12]
    return Path("/dev/shm") / f"luigi-vgg-{os.getuid()}" / f"cores-{name}.lock"


@contextlib.contextmanager
def turn(what: str, processes: int, waiting: Callable[[str], None]) -> Iterator[list[int]]:
    """For a training in so many processes here: if it takes all cores, wait until no other one does.

    Gives file descriptors that they have to inherit. Fewer threads for each training would do as well, but the number
    changes the results: it is for the user to set. `waiting` is called at every look with a line about who has the
    cores. Where there can be no lock nobody waits.
    """
    threads = given_threads(os.environ)
    with contextlib.ExitStack() as held:
        descriptors = []
        if threads is None or threads * processes >= usable_cores():
            with contextlib.suppress(OSError, WorkspaceError):
                path = turn_lock()
                path.parent.mkdir(mode=0o700, exist_ok=True)
                if path.parent.stat().st_uid == os.getuid():  # not laid out by somebody else
                    descriptors.append(held.enter_context(locks.hold(path, what, wait=True, on_wait=waiting)))
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
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # not there, or "max"
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            if quota > 0:
                return quota / period
    return None
