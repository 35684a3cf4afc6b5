"""What the benchmarks share: the machine, configurations, running the real command, tables, results as JSON.

Most benchmarks print tables and write `benchmarks/results/<name>.json`. Run them on a machine with nothing else to do.
README.md has the figures.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median as median
from typing import Any

from pipeline import runtime
from pipeline.process import cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

#: The part of a configuration that needs no archive: 5,000 drawn shapes.
SAMPLE = {"name": "sample", "source": "bundled"}


def machine() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith("flags")), "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "cpu": runtime.cpu_name(),
        "instructions": wide,
        "cores": cores.usable_cores(),
        "kernel": platform.release(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": os.getloadavg()[0],
        "versions": runtime.versions(),
    }


def write_config(path: Path, value: dict[str, Any]) -> Path:
    """Write a configuration (JSON is YAML)."""
    path.write_text(json.dumps(value))
    return path


def timed(
    command: Sequence[str | Path],
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    allowed: Sequence[int] = (0,),
) -> float:
    """Run a command and return its seconds. Ends this program when it exits with a status that is not allowed."""
    started = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    seconds = time.monotonic() - started
    if done.returncode not in allowed:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:].decode()}")
    return seconds


def luigi_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "luigi", "--module", "tasks", *arguments, "--local-scheduler"]


def luigi(*arguments: str, environment: dict[str, str] | None = None, allowed: Sequence[int] = (0,)) -> float:
    """Run the `luigi` command and return its seconds. Ends this program when it fails."""
    return timed(luigi_command(*arguments), environment, allowed=allowed)


def read_manifest(workspace: Path, stage: str) -> dict[str, Any]:
    """The manifest of the only run's stage in a workspace."""
    (path,) = workspace.glob(f"runs/*/*/{stage}/manifest.json")
    return json.loads(path.read_text())


def cpu_seconds() -> float:
    """Of all processes started here that have ended so far, with those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spread(values: Sequence[float], digits: int = 2) -> str:
    """From the least to the most."""
    return f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print one table, every cell as its text."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 140).print(shown)


def finish(name: str, value: dict[str, Any]) -> None:
    """Write the results with the machine that they belong to, and print where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = machine()
    path.write_text(json.dumps({"benchmark": name, "machine": about, **value}, indent=2) + "\n")
    instructions = ", ".join(about["instructions"])
    versions = ", ".join(f"{key} {version}" for key, version in about["versions"].items())
    print(f"{about['cpu']} ({instructions}), {about['cores']} cores, {versions}, {about['date']}; written to {path}")
