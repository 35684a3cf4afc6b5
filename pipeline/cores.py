"""How many threads a stage may use, decided before MXNet is loaded. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline import spinning


def usable_cores() -> int:
    """Cores that this process may really use: its affinity mask, capped by the cgroup's CPU quota and by Slurm's grant.

    A Slurm without the affinity or cgroup plugin grants cores without enforcing it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [math.ceil(limit) for limit in (cgroup_quota(), slurm_grant(os.environ)) if limit]
    return max(1, min([cores, *limits]))


def slurm_grant(environment: Mapping[str, str]) -> int | None:
    """Cores that Slurm granted to this task, or None outside of a job and where it does not tell."""
    if "SLURM_STEP_ID" not in environment:
        return None
    alone = environment.get("SLURM_STEP_NUM_TASKS") == "1"
    told = environment.get("SLURM_CPUS_PER_TASK") or (environment.get("SLURM_CPUS_ON_NODE") if alone else None)
    return int(told) if told and told.isdigit() else None


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs granted by the cgroup (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), or None when there is no limit.

    The tightest limit between this process's group and the root holds.
    """
    limits = []
    for folder in _cgroup_folders(root, process):
        limit = _read_v2(folder / "cpu.max") or _read_v1(folder)
        if limit:
            limits.append(limit)
    return min(limits) if limits else None


def thread_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What OpenMP is told in a stage's process: how many threads, and how they wait; what the user set wins.

    MXNet takes half of the logical cores by default, which halves the speed on small machines.
    """
    threads = environment.get("OMP_NUM_THREADS") or str(usable_cores())
    return {"OMP_NUM_THREADS": threads, **spinning.environment(environment)}


def _cgroup_folders(root: Path, process: Path) -> list[Path]:
    folders = [root, root / "cpu"]
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        parts = Path(path.lstrip("/")).parts
        folders += [base.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    return folders


def _read_v2(file: Path) -> float | None:
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
