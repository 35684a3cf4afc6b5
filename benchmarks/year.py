"""A year of nightly retraining: how large a workspace grows, and what Status, Retrain's planning and Prune cost in it.

Simulates each night (`tests/nights.py`: a tiny run, copied; new data every week), once without Prune and once with
`Prune --keep 5 --older-than 30d` every night.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench

from pipeline import status
from pipeline.retraining import deletion, generations, retention
from pipeline.storage import folder
from pipeline.workspace import Workspace

sys.path.append(str(bench.ROOT / "tests"))

from luigi_runs import SmallChain
from nights import nights

KEEP, DAYS_IN_TRASH = 5, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=365, help="number of nights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        first = SmallChain(Path(name) / "first")
        first.configure(retrain__every="day")
        first.report()
        found = {}
        for mode in ("never pruned", "pruned every night"):
            small = SmallChain(Path(name) / mode, first.archive)
            small.configure(retrain__every="day")
            shutil.copytree(first.workspace, small.workspace)
            found[mode] = year(small, options.nights, mode != "never pruned")
    for mode, row in found.items():
        rows = [(kind, f"{size['files']:,}", f"{size['bytes'] / 1e6:,.1f} MB") for kind, size in row["sizes"].items()]
        rows += [(what, "", f"{seconds:.3f} s") for what, seconds in row["seconds"].items()]
        bench.table(f"{options.nights} nights, {mode}", ("", "files", "size or time"), rows)
    bench.finish("year", {"nights": options.nights, **found})


def year(small: SmallChain, count: int, prune: bool) -> dict[str, Any]:
    workspace, made = small.chain().workspace, [time.time()]
    folder.READ_SECONDS = 0  # real nights are longer than that
    for _ in nights(small, count):
        made.append(time.time())
        if prune:
            month_ago = datetime.timedelta(seconds=time.time() - made[max(0, len(made) - 1 - DAYS_IN_TRASH)])
            prune_like_the_command(small, workspace, month_ago)
    chain, tomorrow = small.chain(), small.chain("2030-01-01")
    seconds = {
        "Status": median_seconds(lambda: status.gather(chain)),
        "Status --sizes, the sizes": median_seconds(lambda: status.sizes(workspace)),
        "Retrain, until it knows what is due": median_seconds(
            lambda: [generations.why_due(tomorrow), generations.same_weights(tomorrow)]
        ),
        "Prune, until it knows what to move": median_seconds(
            lambda: retention.unneeded(workspace, retention.expired(chain, KEEP))
        ),
        "Prune, until it knows what to delete": median_seconds(
            lambda: deletion.old_trash(workspace, datetime.timedelta(days=1))
        ),
        "Status, the command": bench.luigi("Status", *arguments(small), allowed=(0, 3)),
        "Prune, the command": bench.luigi("Prune", *arguments(small), "--keep", str(KEEP)),
    }
    return {"sizes": status.sizes(workspace), "seconds": seconds}


def prune_like_the_command(small: SmallChain, workspace: Workspace, age: datetime.timedelta) -> None:
    chain = small.chain()
    expired = retention.expired(chain, KEEP)
    retention.prune(chain, expired, retention.unneeded(workspace, expired))
    deletion.delete(workspace, deletion.old_trash(workspace, age), deletion.leftovers(workspace, age))


def arguments(small: SmallChain) -> tuple[str, ...]:
    return ("--config", str(small.config), "--workspace", str(small.workspace))


def median_seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the median time of several calls."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return bench.median(seconds)


if __name__ == "__main__":
    main()
