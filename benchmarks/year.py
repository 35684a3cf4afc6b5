"""A year of nightly retraining: what a workspace grows to, and what Status, Retrain's planning and Prune cost in it.

Each night is simulated (`tests/nights.py`: a tiny run, copied; new data every week), once without Prune and once with
`Prune --keep 5 --older-than 30d` every night. `--nights` sets another number.
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
    parser.add_argument("--nights", type=int, default=365)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        first = SmallChain(Path(name) / "first")
        first.configure(retrain__every="day")
        first.report()
        found = {}
        for how in ("never pruned", "pruned every night"):
            small = SmallChain(Path(name) / how, first.archive)
            small.configure(retrain__every="day")
            shutil.copytree(first.workspace, small.workspace)
            found[how] = year(small, options.nights, how != "never pruned")
    for how, row in found.items():
        rows = [(kind, f"{size['files']:,}", f"{size['bytes'] / 1e6:,.1f} MB") for kind, size in row["sizes"].items()]
        rows += [(what, "", f"{seconds:.3f} s") for what, seconds in row["seconds"].items()]
        bench.table(f"{options.nights} nights, {how}", ("", "files", "size or time"), rows)
    bench.finish("year", {"nights": options.nights, **found})


def year(small: SmallChain, count: int, prune: bool) -> dict[str, Any]:
    """Simulate the nights, then measure."""
    workspace, made = small.chain().workspace, [time.time()]
    folder.READ_SECONDS = 0  # a night is longer
    for _ in nights(small, count):
        made.append(time.time())
        if prune:
            month_ago = datetime.timedelta(seconds=time.time() - made[max(0, len(made) - 1 - DAYS_IN_TRASH)])
            prune_like_the_command(small, workspace, month_ago)
    chain, tomorrow = small.chain(), small.chain("2030-01-01")
    seconds = {
        "Status": of(lambda: status.gather(chain)),
        "Status --sizes, the sizes": of(lambda: status.sizes(workspace)),
        "Retrain, until it knows what is due": of(
            lambda: [generations.why_due(tomorrow), generations.same_weights(tomorrow)]
        ),
        "Prune, until it knows what to move": of(
            lambda: retention.unneeded_datasets(workspace, retention.expired(chain, KEEP))
        ),
        "Prune, until it knows what to delete": of(lambda: deletion.old_trash(workspace, datetime.timedelta(days=1))),
        "Status, the command": bench.luigi("Status", *about(small), allowed=(0, 3)),
        "Prune, the command": bench.luigi("Prune", *about(small), "--keep", str(KEEP)),
    }
    return {"sizes": status.sizes(workspace), "seconds": seconds}


def prune_like_the_command(small: SmallChain, workspace: Workspace, age: datetime.timedelta) -> None:
    chain = small.chain()
    expired = retention.expired(chain, KEEP)
    retention.prune(chain, expired, retention.unneeded_datasets(workspace, expired))
    deletion.delete(workspace, deletion.old_trash(workspace, age), deletion.leftovers(workspace, age))


def about(small: SmallChain) -> tuple[str, ...]:
    return ("--config", str(small.config), "--workspace", str(small.workspace))


def of(work: Callable[[], object], rounds: int = 5) -> float:
    """The median of the seconds that something takes."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return bench.median(found)


if __name__ == "__main__":
    main()
