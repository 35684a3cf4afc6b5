"""Archive to arrays (the whole DownloadCifar stage) against gunzip alone, both from the page cache, in turns."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import bench

from pipeline import config
from pipeline.process import parent
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", default=os.environ.get("CIFAR10_SOURCE", ""))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    archive = Path(options.archive).absolute()
    if not archive.is_file():
        sys.exit("no archive: set CIFAR10_SOURCE or --archive")
    archive.read_bytes()
    seconds: dict[str, list[float]] = {"gunzip -c > /dev/null": [], "archive to arrays": []}
    for _ in range(options.rounds):
        for name, measure in zip(seconds, (gunzip, prepare), strict=True):
            seconds[name].append(measure(archive))
    baseline = bench.median(seconds["gunzip -c > /dev/null"])
    rows = [
        (name, f"{bench.median(values):.2f}", bench.spread(values), f"{bench.median(values) / baseline:.2f}")
        for name, values in seconds.items()
    ]
    bench.table(f"{archive.name}, median of {options.rounds}", ("what", "seconds", "range", "relative to gunzip"), rows)
    bench.finish("unpack", {"seconds": seconds})


def gunzip(archive: Path) -> float:
    return bench.timed(["sh", "-c", 'gunzip -c "$0" > /dev/null', archive])


def prepare(archive: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        value = {
            "data": {"name": "cifar10", "source": str(archive)},
            "architecture": {"name": "any", "conv_arch": [[1, 16]]},
            "training": {"epochs": 1},
        }
        chain = Chain(Workspace(Path(name) / "artifacts"), config.from_dict(value))
        started = time.monotonic()
        parent.run_stage("dataset", chain, log=Path(name) / "dataset.log")
        return time.monotonic() - started


if __name__ == "__main__":
    main()
