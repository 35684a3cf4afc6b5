"""`Compare --workers 2` against `--workers 1`: wall-clock and processor seconds on all cores of this machine.

Networks of the quickstart's kind on the bundled sample, each command in a new workspace that has the data set, both in
turn. Goal: two workers are not slower than one. The machine must have nothing else to do; beside other load only the
processor seconds can be compared.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

import bench
import yaml

QUICKSTART = bench.ROOT / "config" / "quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measured: dict[str, list[tuple[float, float]]] = {"1": [], "2": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        configs = [str(write(folder, number, options.epochs)) for number in range(options.networks)]
        bench.luigi("DownloadCifar", "--config", configs[0], "--workspace", str(folder / "prepared"))
        for _ in range(options.rounds):
            for workers, found in measured.items():
                found.append(compare(folder, configs, workers))
    rows = []
    for workers, found in measured.items():
        wall, processor = ([pair[place] for pair in found] for place in (0, 1))
        rows.append((workers, f"{bench.median(wall):.1f}", bench.spread(wall, 1), f"{bench.median(processor):.1f}"))
    title = f"Compare, {options.networks} networks, {options.epochs} epochs, median of {options.rounds}"
    bench.table(title, ("workers", "seconds", "from least to most", "processor seconds"), rows)
    bench.finish("workers", {"options": vars(options), "wall_and_processor_seconds": measured})


def write(folder: Path, number: int, epochs: int) -> Path:
    """The quickstart with some channels more for each number."""
    value: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())
    value["architecture"]["name"] = f"width-{number}"
    value["architecture"]["conv_arch"] = [[count, width + 16 * number] for count, width in [(1, 16), (1, 32), (2, 64)]]
    value["training"] |= {"epochs": epochs, "weight_decay": float(value["training"]["weight_decay"])}
    return bench.write_config(folder / f"width-{number}.yaml", value)


def compare(folder: Path, configs: list[str], workers: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of one command and all that it starts."""
    workspace = folder / "artifacts"
    shutil.copytree(folder / "prepared", workspace)
    before = _processor_seconds()
    seconds = bench.luigi(
        "Compare", "--configs", ",".join(configs), "--workspace", str(workspace), "--workers", workers
    )
    shutil.rmtree(workspace)
    return seconds, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
