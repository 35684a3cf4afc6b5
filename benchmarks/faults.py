"""Faults: everything that can happen to a run on a real machine, done to the real `luigi` command on a tiny network.

First `--tries` kills (kill -9 of the command alone or of all its processes) at random moments in all stages, then each
other fault. After each, the same command runs to the end, and its weights are compared with those of an undisturbed
run by SHA-256. The machine may be busy. 50 kills take about seven minutes on two cores.
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
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bench

sys.path.insert(0, str(bench.ROOT / "tests" / "faults"))

from fault_runs import (
    Command,
    Luigid,
    Place,
    copy_of,
    fill,
    flip_a_bit,
    flip_a_bit_of_the_momentum,
    marked,
    patient_client,
    shiftable_clock,
    write_archive,
)

STAGES = ("dataset", "train", "evaluate", "export", "report")
FULL = "the disk is full: free some space and run the same command again"


class NotPossible(Exception):
    """This machine does not allow the fault (mounting needs root)."""


@dataclass
class Row:
    """One line of the table."""

    fault: str
    tries: int = 0
    survived: int = 0
    identical: int = 0
    bytes_lost: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Baseline:
    """What each fault starts from: a data set, a finished chain to copy, and the digest that the weights must have."""

    folder: Path
    archive: Path
    chain: Place
    digest: str
    #: Seconds that each stage took undisturbed.
    seconds: dict[str, float]
    number: int = 0

    def fresh(self, *stages: str) -> Place:
        """A new workspace in which these stages are done."""
        self.number += 1
        place = Place(self.folder / f"place{self.number}", self.archive)
        place.workspace.mkdir()
        for stage in stages:
            for folder in (self.chain.stage(stage), *self.chain.workspace.glob("datasets/sources")):
                target = place.workspace / folder.relative_to(self.chain.workspace)
                shutil.copytree(folder, target, dirs_exist_ok=True)
        return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=50, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--only", default="", help="only the faults whose name contains this")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it behind")
    parser.add_argument("--no-results", action="store_true", help="only print the table")
    options = parser.parse_args()
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        baseline = prepare(folder)
        rows = [kills(baseline, options.tries, random.Random(options.seed))] if options.only in KILLS else []
        rows += [run_fault(baseline, fault, name) for name, fault in FAULTS.items() if options.only in name]
    shown = [
        (row.fault, row.tries, f"{row.survived} of {row.tries}", row.bytes_lost, f"{row.identical} of {row.tries}")
        for row in rows
    ]
    bench.table("faults", ("fault", "tries", "survived", "bytes lost", "weights identical"), shown)
    for row in rows:
        for note in row.notes:
            print(f"{row.fault}: {note}")
    seconds = round(time.monotonic() - started)
    if not options.no_results:
        bench.finish("faults", {"rows": [vars(row) for row in rows], "seed": options.seed, "seconds": seconds})
    return int(any(row.survived < row.tries or row.identical < row.tries or row.bytes_lost for row in rows))


def prepare(folder: Path) -> Baseline:
    """Write the archive and run the undisturbed chain."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = write_archive(folder / "mini.tar.gz")
    chain = Place(folder / "undisturbed", archive)
    chain.run("Report").check(0)
    seconds = {event["stage"]: event["seconds"] for event in chain.events() if event["event"] == "finished"}
    return Baseline(folder, archive, chain, chain.digest(), seconds)


# --- kills at random moments --------------------------------------------------------------------------------------

KILLS = "kill -9 at random moments of all stages"


def kills(baseline: Baseline, tries: int, chance: random.Random) -> Row:
    """Kill, look at what is left, run again; after a few kills let it finish and compare the weights."""
    row, by_stage = Row(KILLS), Counter[str]()
    while row.tries < tries:
        place, here = baseline.fresh(), 0
        while row.tries < tries and here < len(STAGES) + 1:
            # Of the stages left here, the one that was hit least so far.
            stage = min(STAGES[STAGES.index(first_unfinished(place)) :], key=lambda name: by_stage[name])
            before = finished_files(place)
            killed_in = kill_in(place, stage, baseline.seconds[stage] * chance.random(), chance.random() < 0.5)
            row.bytes_lost += lost(before)
            if killed_in is None:
                break
            by_stage[killed_in] += 1
            here += 1
            row.tries += 1
        command = place.run("Report")
        good = command.code == 0 and place.run("Verify").code == 0
        row.survived += here if good else 0
        row.identical += here if good and place.digest() == baseline.digest else 0
        if not good:
            row.notes.append(f"{place.folder.name}: {command.output[-400:]}")
        shutil.rmtree(place.folder)
        print(f"  {row.tries} kills, {row.identical} with identical weights", file=sys.stderr, flush=True)
    row.notes.append("killed in " + ", ".join(f"{stage} {by_stage[stage]}" for stage in STAGES))
    return row


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
    """Size and SHA-256 of every file that a finished stage has recorded, except in the trash: damaged on purpose."""
    found = {}
    for path in place.workspace.glob("**/manifest.json"):
        if place.workspace / "trash" in path.parents:
            continue
        with contextlib.suppress(OSError, ValueError):
            recorded = json.loads(path.read_text())["files"]
            found |= {path.parent / name: (about["size"], about["sha256"]) for name, about in recorded.items()}
    return found


def lost(before: dict[Path, tuple[int, str]]) -> int:
    """Bytes of finished files (`finished_files`) that are gone or changed."""
    gone = 0
    for path, (size, digest) in before.items():
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            gone += size
    return gone


# --- the other faults ---------------------------------------------------------------------------------------------


def run_fault(baseline: Baseline, fault: Callable[[Baseline], Place], name: str) -> Row:
    """One fault, once: it asserts what must be printed, and returns the place where the weights must be right."""
    row = Row(name)
    try:
        place = fault(baseline)
        row.tries, row.survived = 1, 1
        row.bytes_lost = lost(finished_files(place))
        row.identical = int(place.digest() == baseline.digest)
    except NotPossible as reason:
        row.notes.append(f"not tried: {reason}")
    except AssertionError as error:
        row.tries = 1
        row.notes.append(str(error)[-600:])
    print(f"  {name}: {'survived' if row.survived else row.notes}", file=sys.stderr, flush=True)
    return row


def training(place: Place, *arguments: str) -> Command:
    """A command in the middle of its training."""
    command = place.start("TrainVGG", *arguments)
    step = place.newest_step()
    command.wait_for(lambda: place.newest_step() > step + 10, "some steps")
    return command


def stopped(number: int, code: int) -> Callable[[Baseline], Place]:
    def fault(baseline: Baseline) -> Place:
        place = baseline.fresh("dataset")
        for _ in range(2):
            command = training(place)
            command.send(number)
            command.finish(code)
            command.wait_until_gone(10)
        place.run().check(0)
        return place

    return fault


def child_killed(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    command = training(place)
    os.kill(command.child(), signal.SIGKILL)
    command.finish(30)
    place.run().check(0)
    return place


def rerun_while_the_last_process_lives(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    command = training(place)
    command.send(signal.SIGKILL)
    command.process.wait()
    place.run().check(0)
    return place


def two_at_once(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    codes = sorted(command.finish() for command in (place.start(), place.start()))
    assert codes == [0, 10], codes
    return place


def newest_checkpoint_damaged(baseline: Baseline) -> Place:
    place = interrupted(baseline)
    flip_a_bit_of_the_momentum(place.checkpoints()[-1])
    command = place.run().check(0)
    assert "falling back to the one before" in command.output, command.output
    return place


def all_checkpoints_truncated(baseline: Baseline) -> Place:
    place = interrupted(baseline)
    for path in place.checkpoints():
        os.truncate(path, 1000)
    place.run().check(0)
    return place


def work_folder_deleted(baseline: Baseline) -> Place:
    place = interrupted(baseline)
    shutil.rmtree(place.workspace / "work")
    command = training(place)
    shutil.rmtree(place.workspace / "work", ignore_errors=True)
    command.finish(0)
    return place


def interrupted(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    command = training(place)
    command.send(signal.SIGTERM)
    command.finish(143)
    return place


def artifacts_removed_or_truncated(baseline: Baseline) -> Place:
    place = baseline.fresh(*STAGES)
    (place.stage("dataset") / "test_images.npy").unlink()
    os.truncate(place.stage("train") / "model.params", 100)
    (place.stage("evaluate") / "metrics.json").unlink()
    os.truncate(place.stage("export") / "model.onnx", 100)
    (place.stage("report") / "index.html").unlink()
    place.run("Report").check(0)
    place.run("Verify").check(0)
    return place


def a_bit_flipped_in_the_weights(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset", "train")
    flip_a_bit(place.stage("train") / "model.params")
    place.run("Verify").check(4)
    command = place.run("Report").check(30)
    assert command.output.count("model.params: damaged") == 2, command.output
    place.run("SetAside", "--stage", "train", "--confirm").check(0)
    place.run("Report").check(0)
    return place


def a_bit_flipped_in_the_images(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    flip_a_bit(place.stage("dataset") / "train_images.npy")
    command = place.run().check(30)
    assert "train_images.npy is damaged" in command.output, command.output
    place.run("SetAside", "--stage", "dataset", "--confirm").check(0)
    place.run().check(0)
    return place


def diverging_loss(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    place.configure(learning_rate=1e30)
    command = place.run("TrainVGG", "--worker-keep-alive", "--scheduler-retry-delay", "0", "--local-scheduler")
    command.check(30)
    assert place.started("train") == 1, "tried again"
    assert "no longer a finite number at epoch 1, step" in command.output, command.output
    place.configure()
    place.run().check(0)
    return place


def luigid_restarted(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    patient_client(place)
    with luigid(place) as scheduler:
        command = place.start("Export", scheduler.argument)
        command.wait_for(lambda: place.newest_step() > 10, "some steps")
        scheduler.kill()
        scheduler.start()
        command.finish(0)
    assert (place.stage("export") / "manifest.json").exists()
    return place


def rerun_under_luigid(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    with luigid(place) as scheduler:
        command = training(place, scheduler.argument)
        command.send(signal.SIGKILL)
        command.process.wait()
        place.run("TrainVGG", scheduler.argument).check(0)
    return place


@contextlib.contextmanager
def luigid(place: Place) -> Iterator[Luigid]:
    scheduler = Luigid(place.folder)
    try:
        yield scheduler
    finally:
        scheduler.kill()


def clock_set_back(baseline: Baseline) -> Place:
    place = baseline.fresh("dataset")
    jump = shiftable_clock(place)
    command = training(place)
    jump.touch()
    step = place.newest_step()
    command.wait_for(lambda: place.newest_step() > step + 10, "checkpoints after the clock was set back")
    command.kill()
    for path in place.workspace.rglob("*"):
        os.utime(path, (4e9, 4e9))
    place.run().check(0)
    return place


def full_disk(stage: str) -> Callable[[Baseline], Place]:
    def fault(baseline: Baseline) -> Place:
        with small_disk(baseline.folder / f"disk-{stage}") as disk:
            done = baseline.fresh(*STAGES[: STAGES.index(stage)])
            place = copy_of(done, baseline.folder / f"commands-{stage}", disk / "artifacts")
            filler = fill(disk, 0 if stage == "evaluate" else 40_000)  # it writes the least
            task = "Export" if stage == "export" else "Evaluate" if stage == "evaluate" else "Report"
            command = place.run(task).check(30)
            assert command.output.count(FULL) == 1, command.output
            filler.unlink()
            place.run("Report").check(0)
            place.run("Verify").check(0)
            shutil.copytree(place.workspace, done.workspace, dirs_exist_ok=True)
        return done

    return fault


def read_only(baseline: Baseline) -> Place:
    with small_disk(baseline.folder / "disk-read-only") as disk:
        place = baseline.fresh("dataset")
        inside = copy_of(place, baseline.folder / "commands-read-only", disk / "artifacts")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        command = inside.run().check(30)
        assert command.output.count("the file system is read-only") == 1, command.output
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        inside.run().check(0)
        shutil.copytree(inside.workspace, place.workspace, dirs_exist_ok=True)
    return place


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotPossible(f"a small file system cannot be mounted: {error}") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


FAULTS: dict[str, Callable[[Baseline], Place]] = {
    "SIGTERM while training, twice": stopped(signal.SIGTERM, 143),
    "Ctrl-C while training, twice": stopped(signal.SIGINT, 130),
    "kill -9 of the training process": child_killed,
    "run again at once after kill -9": rerun_while_the_last_process_lives,
    "run again at once after kill -9, under luigid": rerun_under_luigid,
    "luigid killed and restarted while training": luigid_restarted,
    "two identical commands at once": two_at_once,
    "one bit flipped in the newest checkpoint": newest_checkpoint_damaged,
    "all checkpoints truncated": all_checkpoints_truncated,
    "work/ deleted while stopped and while training": work_folder_deleted,
    "a file of every stage removed or truncated": artifacts_removed_or_truncated,
    "one bit flipped in model.params": a_bit_flipped_in_the_weights,
    "one bit flipped in the images": a_bit_flipped_in_the_images,
    "loss becomes NaN, configuration then corrected": diverging_loss,
    "disk full in dataset": full_disk("dataset"),
    "disk full in train": full_disk("train"),
    "disk full in evaluate": full_disk("evaluate"),
    "disk full in export": full_disk("export"),
    "disk full in report": full_disk("report"),
    "read-only workspace, then writable": read_only,
    "clock set back a day, files from the future": clock_set_back,
}


if __name__ == "__main__":
    sys.exit(main())
