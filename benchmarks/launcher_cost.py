"""What the Slurm launcher costs: the same training started here and through srun, in turns.

`outside` is the time of the whole `luigi` command without the epochs themselves: start, streaming, finish. SLURM_CONF
must name a Slurm that has a free node. Goal: at most 3 s more than a local start on a training of a minute.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench

from pipeline.process import cores

SRUN = ["srun", "--job-name=launcher-cost", "--ntasks=1", "--exclusive"]
CONFIG: dict[str, Any] = {
    "data": bench.SAMPLE,
    "architecture": {"name": "small", "conv_arch": [[1, 8], [1, 16], [1, 32]], "batch_norm": True, "dense": []},
    "training": {"epochs": 2, "batch_size": 64, "validation_images": 200},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="approximate length of the training itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores.usable_cores(), help="threads of a training")
    options = parser.parse_args()
    if "SLURM_CONF" not in os.environ:
        sys.exit("SLURM_CONF is not set: start a Slurm, or source its environment")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        train(folder, [], 2, options.threads)  # makes the data set
        _, seconds = train(folder, [], 4, options.threads)
        epochs = max(2, round(4 * options.seconds / seconds))
        rows: dict[str, list[tuple[float, float]]] = {"here": [], "srun": []}
        for _ in range(options.rounds):
            for where, launcher in (("here", []), ("srun", SRUN)):
                rows[where].append(train(folder, launcher, epochs, options.threads))
    report(rows, epochs)


def train(folder: Path, launcher: list[str], epochs: int, threads: int) -> tuple[float, float]:
    """Seconds of the whole command, and of the training's epochs alone."""
    training, workspace = {**CONFIG["training"], "epochs": epochs}, folder / "artifacts"
    config = bench.write_config(folder / "small.yaml", {**CONFIG, "training": training, "launcher": launcher})
    shutil.rmtree(workspace / "runs", ignore_errors=True)
    about = ("TrainVGG", "--config", str(config), "--workspace", str(workspace))
    whole = bench.luigi(*about, environment={"OMP_NUM_THREADS": str(threads)})
    return whole, bench.read_manifest(workspace, "train")["details"]["seconds"]


def report(rows: dict[str, list[tuple[float, float]]], epochs: int) -> None:
    outside = {where: [whole - inside for whole, inside in values] for where, values in rows.items()}
    cost = bench.median(outside["srun"]) - bench.median(outside["here"])
    table = [
        (
            where,
            f"{bench.median([whole for whole, _ in values]):.1f}",
            f"{bench.median([inside for _, inside in values]):.1f}",
            f"{bench.median(outside[where]):.2f}",
            bench.spread(outside[where]),
        )
        for where, values in rows.items()
    ]
    title = f"{epochs} epochs, median of {len(rows['here'])}; srun costs {cost:.2f} s more (goal: at most 3 s)"
    bench.table(title, ("where", "command, s", "epochs, s", "outside, s", "range"), table)
    bench.finish("launcher_cost", {"epochs": epochs, "seconds": rows, "outside": outside, "cost": cost})


if __name__ == "__main__":
    main()
