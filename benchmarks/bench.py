"""Shared helpers of the benchmarks: machine info, configurations, running the real command, tables, JSON results."""

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

#: `data` of a configuration that needs no archive: 5,000 drawn shapes.
SAMPLE = {"name": "sample", "source": "bundled"}


def machine() -> dict[str, Any]:
    """Describe the machine and the versions behind a figure."""
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith("flags")), "").split()
    instructions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "cpu": runtime.cpu_name(),
        "instructions": instructions,
        "cores": cores.usable_cores(),
        "kernel": platform.release(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": os.getloadavg()[0],
        "versions": runtime.versions(),
    }


def write_config(path: Path, value: dict[str, Any]) -> Path:
    """Write a configuration (JSON is YAML) and return its path."""
    path.write_text(json.dumps(value))
    return path


def timed(
    command: Sequence[str | Path],
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    allowed: Sequence[int] = (0,),
) -> float:
    """Run a command and return its seconds. Exits this program if the exit status is not in `allowed`."""
    started = time.monotonic()
    result = subprocess.run(
        command, env={**os.environ, **(environment or {})}, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    seconds = time.monotonic() - started
    if result.returncode not in allowed:
        sys.exit(f"{' '.join(map(str, command))} exited with {result.returncode}:\n{result.stdout[-4000:].decode()}")
    return seconds


def luigi_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "luigi", "--module", "tasks", *arguments, "--local-scheduler"]


def luigi(*arguments: str, environment: dict[str, str] | None = None, allowed: Sequence[int] = (0,)) -> float:
    """Run the `luigi` command and return its seconds. Exits this program if it fails."""
    return timed(luigi_command(*arguments), environment, allowed=allowed)


def read_manifest(workspace: Path, stage: str) -> dict[str, Any]:
    """Read the manifest of a stage in a workspace with a single run."""
    (path,) = workspace.glob(f"runs/*/*/{stage}/manifest.json")
    return json.loads(path.read_text())


def cpu_seconds() -> float:
    """CPU seconds (user and system) of all finished child processes and their descendants."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the range, `min to max`."""
    return f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, converting each cell with `str`."""
    from rich.console import Console
    from rich.table import Table

    rendered = Table(*columns, title=title, title_justify="left")
    for row in rows:
        rendered.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 140).print(rendered)


def finish(name: str, value: dict[str, Any]) -> None:
    """Write the results with a description of the machine, and print the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = machine()
    path.write_text(json.dumps({"benchmark": name, "machine": about, **value}, indent=2) + "\n")
    instructions = ", ".join(about["instructions"])
    versions = ", ".join(f"{key} {version}" for key, version in about["versions"].items())
    print(f"{about['cpu']} ({instructions}), {about['cores']} cores, {versions}, {about['date']}; written to {path}")
