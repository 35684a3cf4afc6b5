"""Kills the real `luigi` command at random moments of all stages, on a tiny network.

Sends kill -9 `--tries` times, to the command alone or to all its processes. After every few kills the same command
runs to the end, and its weights are compared with those of an uninterrupted run by SHA-256. 50 kills take about seven
minutes on two cores, which may be busy. All other faults are tests: `pytest tests/faults`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench

sys.path[:0] = [str(bench.ROOT / "tests"), str(bench.ROOT / "tests" / "faults")]

from fault_runs import Command, Place, marked, write_archive  # noqa: E402 (needs the path above)

STAGES = ("dataset", "train", "evaluate", "export", "report")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=50, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--no-results", action="store_true", help="only print the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        chain = Place(folder / "undisturbed", write_archive(folder / "mini.tar.gz"))
        chain.run("Report").check(0)
        totals = kills(folder, chain, options.tries, random.Random(options.seed))
    tries, columns = totals["tries"], ("survived", "weights identical")
    stages = ", ".join(f"{stage} {count}" for stage, count in totals["killed in"].items())
    row = (stages, *(f"{totals[column]} of {tries}" for column in columns), totals["bytes lost"])
    bench.table("kill -9 at random moments", ("killed in", *columns, "bytes lost"), [row])
    for note in totals["notes"]:
        print(note)
    if not options.no_results:
        bench.finish("faults", {**totals, "seed": options.seed})
    return int(any(totals[column] < tries for column in columns) or totals["bytes lost"] > 0)


def kills(folder: Path, chain: Place, tries: int, rng: random.Random) -> dict[str, Any]:
    """Kill, check finished files, run again; after a few kills let it finish and compare the weights."""
    seconds = {event["stage"]: event["seconds"] for event in chain.events() if event["event"] == "finished"}
    by_stage = dict.fromkeys(STAGES, 0)
    totals: dict[str, Any] = {"tries": 0, "survived": 0, "weights identical": 0, "bytes lost": 0, "notes": []}
    while totals["tries"] < tries:
        place, hits = Place(folder / f"place{totals['tries']}", chain.archive), 0
        while totals["tries"] < tries and hits < len(STAGES) + 1:
            # Of the remaining stages, pick the one hit least so far.
            stage = min(STAGES[STAGES.index(first_unfinished(place)) :], key=lambda name: by_stage[name])
            before = finished_files(place)
            killed_in = kill_in(place, stage, seconds[stage] * rng.random(), rng.random() < 0.5)
            totals["bytes lost"] += lost(before)
            if killed_in is None:
                break
            by_stage[killed_in] += 1
            hits += 1
            totals["tries"] += 1
        command = place.run("Report")
        intact = command.code == 0 and place.run("Verify").code == 0
        totals["survived"] += hits if intact else 0
        totals["weights identical"] += hits if intact and place.digest() == chain.digest() else 0
        if not intact:
            totals["notes"].append(f"{place.folder.name}: {command.output[-400:]}")
        shutil.rmtree(place.folder)
        print(f"{totals['tries']} kills, {totals['weights identical']} with identical weights", flush=True)
    return {**totals, "killed in": by_stage}


def first_unfinished(place: Place) -> str:
    """Return the first unfinished stage, or the last one if all are finished."""
    done = [stage for stage in STAGES if (place.stage(stage) / "manifest.json").exists()]
    return next((stage for stage in STAGES if stage not in done), STAGES[-1])


def kill_in(place: Place, stage: str, delay: float, everything: bool) -> str | None:
    """Start the command, kill it `delay` seconds after `stage` began; return the stage hit, or None if it had ended."""
    before = place.started(stage)
    command = place.start("Report")
    while command.code is None and place.started(stage) == before:
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.process.wait(delay)
    running = [event["stage"] for event in place.events() if event["event"] == "started"][-1]
    killed_in = running if command.code is None else None
    pull_the_plug(command) if everything else command.kill()
    return killed_in


def pull_the_plug(command: Command) -> None:
    for pid in [command.process.pid, *marked(command.mark)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    command.process.wait()
    command.wait_until_gone()


def finished_files(place: Place) -> dict[Path, tuple[int, str]]:
    """Return size and SHA-256 of every file recorded by a finished stage."""
    files: dict[Path, tuple[int, str]] = {}
    for path in place.workspace.glob("**/manifest.json"):
        with contextlib.suppress(OSError, ValueError):
            recorded = json.loads(path.read_text())["files"]
            files |= {path.parent / name: (about["size"], about["sha256"]) for name, about in recorded.items()}
    return files


def lost(before: dict[Path, tuple[int, str]]) -> int:
    """Count the bytes of `finished_files` that are missing or changed."""
    return sum(
        size
        for path, (size, digest) in before.items()
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest
    )


if __name__ == "__main__":
    sys.exit(main())
