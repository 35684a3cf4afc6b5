"""Kills at random moments of all stages, done to the real `luigi` command on a tiny network.

`--tries` times kill -9 of the command alone or of all its processes. After a few of them the same command runs to the
end, and its weights are compared with those of an undisturbed run by SHA-256. The machine may be busy. 50 kills take
about seven minutes on two cores. Every other fault is a test: `pytest tests/faults`.
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
        found = kills(folder, chain, options.tries, random.Random(options.seed))
    tries, columns = found["tries"], ("survived", "weights identical")
    stages = ", ".join(f"{stage} {count}" for stage, count in found["killed in"].items())
    row = (stages, *(f"{found[column]} of {tries}" for column in columns), found["bytes lost"])
    bench.table("kill -9 at random moments", ("killed in", *columns, "bytes lost"), [row])
    for note in found["notes"]:
        print(note)
    if not options.no_results:
        bench.finish("faults", {**found, "seed": options.seed})
    return int(any(found[column] < tries for column in columns) or found["bytes lost"] > 0)


def kills(folder: Path, chain: Place, tries: int, chance: random.Random) -> dict[str, Any]:
    """Kill, look at what is left, run again; after a few kills let it finish and compare the weights."""
    seconds = {event["stage"]: event["seconds"] for event in chain.events() if event["event"] == "finished"}
    by_stage = dict.fromkeys(STAGES, 0)
    found: dict[str, Any] = {"tries": 0, "survived": 0, "weights identical": 0, "bytes lost": 0, "notes": []}
    while found["tries"] < tries:
        place, here = Place(folder / f"place{found['tries']}", chain.archive), 0
        while found["tries"] < tries and here < len(STAGES) + 1:
            # Of the stages left here, the one that was hit least so far.
            stage = min(STAGES[STAGES.index(first_unfinished(place)) :], key=lambda name: by_stage[name])
            before = finished_files(place)
            killed_in = kill_in(place, stage, seconds[stage] * chance.random(), chance.random() < 0.5)
            found["bytes lost"] += lost(before)
            if killed_in is None:
                break
            by_stage[killed_in] += 1
            here += 1
            found["tries"] += 1
        command = place.run("Report")
        good = command.code == 0 and place.run("Verify").code == 0
        found["survived"] += here if good else 0
        found["weights identical"] += here if good and place.digest() == chain.digest() else 0
        if not good:
            found["notes"].append(f"{place.folder.name}: {command.output[-400:]}")
        shutil.rmtree(place.folder)
        print(f"{found['tries']} kills, {found['weights identical']} with identical weights", flush=True)
    return {**found, "killed in": by_stage}


def first_unfinished(place: Place) -> str:
    """The first stage that is not finished."""
    done = [stage for stage in STAGES if (place.stage(stage) / "manifest.json").exists()]
    return next((stage for stage in STAGES if stage not in done), STAGES[-1])


def kill_in(place: Place, stage: str, delay: float, everything: bool) -> str | None:
    """Start the command, kill it `delay` seconds after `stage` began; returns the stage it hit, None if none."""
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
    """Size and SHA-256 of every file that a finished stage has recorded."""
    found: dict[Path, tuple[int, str]] = {}
    for path in place.workspace.glob("**/manifest.json"):
        with contextlib.suppress(OSError, ValueError):
            recorded = json.loads(path.read_text())["files"]
            found |= {path.parent / name: (about["size"], about["sha256"]) for name, about in recorded.items()}
    return found


def lost(before: dict[Path, tuple[int, str]]) -> int:
    """Bytes of finished files (`finished_files`) that are gone or changed."""
    return sum(
        size
        for path, (size, digest) in before.items()
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest
    )


if __name__ == "__main__":
    sys.exit(main())
