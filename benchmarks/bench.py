"""What the benchmarks share: describing the machine, running the real command, printing a table, writing JSON.

Every benchmark prints one table and writes `benchmarks/results/<name>.json`. Run them on a quiet machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import runtime
from pipeline.process import cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(ROOT))


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


def luigi(*arguments: str, environment: dict[str, str] | None = None, check: bool = True) -> tuple[float, int, str]:
    """Run the `luigi` command; gives seconds, exit status and output. Ends this program when it fails and `check`."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "luigi", "--module", "tasks", *arguments, "--local-scheduler"],
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    if check and done.returncode:
        sys.exit(f"luigi {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds, done.returncode, done.stdout + done.stderr


def read_manifest(workspace: Path, stage: str) -> dict[str, Any]:
    """The manifest of the only run's stage in a workspace."""
    (path,) = workspace.glob(f"runs/*/*/{stage}/manifest.json")
    return json.loads(path.read_text())


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print one table, every cell as its text."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 140).print(shown)


def finish(name: str, value: dict[str, Any]) -> None:
    """Write the results with the machine they belong to, and say where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = machine()
    path.write_text(json.dumps({"benchmark": name, "machine": about, **value}, indent=2) + "\n")
    instructions = ", ".join(about["instructions"])
    versions = ", ".join(f"{key} {version}" for key, version in about["versions"].items())
    print(f"{about['cpu']} ({instructions}), {about['cores']} cores, {versions}, {about['date']}; written to {path}")
