"""Damaged, missing and unwritable files, a diverging loss, a clock set back: reported in one line, nothing lost."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_runs import EPOCHS, Place, copy_of, fill, flip_a_bit, shiftable_clock

from pipeline import config, status
from pipeline.verify import verify
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain

Undisturbed = Callable[..., str]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {"removed": Path.unlink, "truncated": truncate, "one bit flipped": flip_a_bit}


def artifacts(place: Place) -> list[Path]:
    """All files of the stages except logs."""
    files = [*place.stage("dataset").glob("*"), *place.stage("train").parent.glob("*/*")]
    return sorted(path for path in files if path.is_file() and path.suffix != ".log")


def problems(place: Place) -> list[str]:
    return verify(Workspace(place.workspace)).damaged


# --- damaged files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_verify_names_whatever_artifact_is_damaged(finished: Place, damage: Callable[[Path], None]) -> None:
    assert problems(finished) == []
    paths = artifacts(finished)
    assert {"model.params", "trainer.npz", "train_images.npy", "model.onnx", "manifest.json"} <= {p.name for p in paths}
    for path in paths:
        good = path.read_bytes()
        damage(path)
        found = problems(finished)
        # Without a manifest a stage is unfinished, not damaged, except a training without checkpoints.
        if (path.name, damage) != ("manifest.json", Path.unlink) or "train" in path.parts:
            named = path.parent.name if path.name == "manifest.json" else f"{path.parent.name}/{path.name}"
            assert any(named in line for line in found), (path, found)
        path.write_bytes(good)
    assert problems(finished) == []


def keys(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The key path of every value in nested dicts and lists (only the first item of a list)."""
    yield before
    if isinstance(value, dict):
        for key, item in value.items():
            yield from keys(item, (*before, key))
    elif isinstance(value, list) and value:
        yield from keys(value[0], (*before, 0))


def test_whatever_is_in_a_manifest_or_pointer_status_says_what_would_run(finished: Place) -> None:
    chain = Chain(Workspace(finished.workspace), config.load(finished.folder / "run.yaml"))
    finished_before = status.lines(status.gather(chain), "run.yaml")
    foreign_values, changes = itertools.cycle([None, 7, "x", {}, []]), 0
    for path in [*finished.workspace.rglob("manifest.json"), *finished.workspace.glob("datasets/sources/*.json")]:
        good = path.read_bytes()
        for way in list(keys(json.loads(good)))[1:]:
            for foreign in itertools.islice(foreign_values, 2):
                value = json.loads(good)
                inner = functools.reduce(operator.getitem, way[:-1], value)
                inner[way[-1]] = foreign
                path.write_text(json.dumps(value))
                lines = status.lines(status.gather(chain), "run.yaml")
                assert len(lines) >= 6, (path, way, foreign)
                changes += 1
        path.write_bytes(good)
    assert changes > 400
    assert status.lines(status.gather(chain), "run.yaml") == finished_before


@pytest.mark.parametrize("content", ["{}", "[" * 100_000, '{"dataset": "../../etc", "digest": "passwd"}'])
def test_a_damaged_note_of_the_source_makes_the_data_set_known_again(finished: Place, content: str) -> None:
    (pointer,) = (finished.workspace / "datasets" / "sources").glob("*.json")
    pointer.write_text(content)
    command = finished.run("Report")
    assert command.code == 0, command.output
    assert finished.started("dataset") == 2
    assert finished.started("train") == 1


def test_a_report_whose_facts_are_damaged_is_still_pointed_to(finished: Place) -> None:
    path = finished.stage("report") / "report.json"
    path.write_text(path.read_text().replace('"evaluation":', '"evoluation":', 1))
    command = finished.run("Report")
    assert command.code == 0, command.output
    assert "report.json is damaged (luigi --module tasks Verify); report: " in command.output
    assert finished.run("Verify").code == 4


def test_verify_ends_with_4_and_a_line_for_each_damaged_file(finished: Place) -> None:
    flip_a_bit(finished.stage("train") / "model.params")
    command = finished.run("Verify")
    assert command.code == 4
    assert "train/model.params is damaged: its SHA-256 does not match its manifest" in command.output
    assert "Traceback" not in command.output


def test_stages_and_continued_training_refuse_weights_with_a_flipped_bit(finished: Place) -> None:
    flip_a_bit(finished.stage("train") / "model.params")
    for stage in ("evaluate", "export"):
        (finished.stage(stage) / "manifest.json").unlink()
    command = finished.run("Report")
    assert command.code == 30
    assert command.output.count("model.params: damaged: its SHA-256 is") == 2  # evaluate, export
    assert not (finished.stage("evaluate") / "manifest.json").exists()
    finished.configure(epochs=EPOCHS + 1)
    command = finished.run()
    assert command.code == 30
    assert "model.params: damaged: its SHA-256 is" in command.output
    assert "SetAside --stage train" in command.output


def test_training_refuses_a_data_set_with_a_flipped_bit_and_goes_on_when_it_was_made_again(
    place: Place, undisturbed: Undisturbed
) -> None:
    flip_a_bit(place.stage("dataset") / "train_images.npy")
    command = place.run()
    assert command.code == 30
    assert "train_images.npy is damaged" in command.output
    assert place.run("SetAside", "--stage", "dataset", "--confirm").code == 0
    assert place.run().code == 0
    assert place.digest() == undisturbed()


def test_a_rerun_makes_again_whatever_was_removed_or_truncated_and_the_weights_are_the_same(
    finished: Place, whole_chain: Place
) -> None:
    (finished.stage("dataset") / "test_images.npy").unlink()
    truncate(finished.stage("train") / "model.params")
    (finished.stage("evaluate") / "metrics.json").unlink()
    truncate(finished.stage("export") / "model.onnx")
    truncate(finished.stage("report") / "manifest.json")
    command = finished.run("Report")
    assert command.code == 0, command.output
    assert finished.digest() == whole_chain.digest()
    assert problems(finished) == []


def test_lost_momentum_is_reported_when_epochs_are_raised(finished: Place) -> None:
    truncate(finished.stage("train") / "trainer.npz")
    finished.configure(epochs=EPOCHS + 1)
    command = finished.run()
    assert command.code == 0
    assert "resuming from model.params with zero momentum" in command.output
    assert finished.manifest()["details"]["inexact"] == ["the momentum was lost when the run was resumed"]
    assert finished.history() == list(range(1, EPOCHS + 2))


# --- a diverging loss ---------------------------------------------------------------------------------------------


def test_a_diverging_loss_stops_with_epoch_step_rate_and_the_last_good_checkpoint(place: Place) -> None:
    place.configure(
        epochs=3000,
        architecture={"batch_norm": False},
        learning_rate=1e9,
        schedule={"kind": "triangle", "peak": 0.99},
    )
    command = place.run()
    assert command.code == 30
    line = next(line for line in command.output.splitlines() if "no longer a finite number" in line)
    assert "at epoch " in line
    assert "step " in line
    assert "learning rate " in line
    assert "checkpoint" in line
    assert "Traceback" not in command.output
    assert place.started("train") == 1
    assert not (place.stage("train") / "model.params").exists()


def test_a_diverging_loss_is_not_tried_again_by_a_worker_that_is_kept_alive(place: Place) -> None:
    place.configure(architecture={"batch_norm": False}, learning_rate=1e18, checkpoint_seconds=60)
    command = place.run("TrainVGG", "--worker-keep-alive", "--scheduler-retry-delay", "0", "--local-scheduler")
    assert command.code == 30
    assert place.started("train") == 1
    assert "no checkpoint was written before" in command.output


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_before_the_data_set_is_made(
    archive: Path, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    disk = mounted()
    place = Place(tmp_path / "place", archive)
    place.workspace = disk / "artifacts"
    filler = fill(disk, 300_000)
    command = place.run("DownloadCifar")
    assert command.code == 30
    assert command.output.count("the disk is full: free some space and run the same command again") == 1
    assert "Traceback" not in command.output
    filler.unlink()
    assert place.run("DownloadCifar").code == 0
    assert problems(place) == []


@pytest.mark.parametrize("steps", [0, 20], ids=["before it starts", "in the middle"])
def test_a_disk_that_is_full_while_training(
    data_only: Place, mounted: Callable[..., Path], undisturbed: Undisturbed, tmp_path: Path, steps: int
) -> None:
    disk = mounted()
    place = copy_of(data_only, tmp_path / "place", disk / "artifacts")
    filler = None if steps else fill(disk, 50_000)
    command = place.start()
    if steps:
        command.wait_for(lambda: place.newest_step() > steps, "some steps")
        filler = fill(disk)
    command.finish(30)
    assert filler
    assert command.output.count("the disk is full: free some space and run the same command again") == 1
    assert "Traceback" not in command.output
    kept = place.newest_step()
    filler.unlink()
    command = place.run()
    assert command.code == 0, command.output
    assert ("resumed from step-" in command.output) == (kept > 0)
    assert place.digest() == undisturbed()
    assert problems(place) == []


def test_a_disk_that_is_full_while_evaluating_exporting_and_reporting(
    whole_chain: Place, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    disk = mounted()
    place = copy_of(whole_chain, tmp_path / "place", disk / "artifacts")
    for stage in ("evaluate", "export", "report"):
        shutil.rmtree(place.stage(stage))
    filler = fill(disk)
    command = place.run("Report")
    assert command.code == 30
    assert command.output.count("the disk is full: free some space and run the same command again") == 2
    assert "Traceback" not in command.output
    filler.unlink()
    assert place.run("Export").code == 0
    assert place.run("Evaluate").code == 0
    filler = fill(disk, 30_000)
    command = place.run("Report")
    assert command.code == 30
    assert command.output.count("the disk is full: free some space and run the same command again") == 1
    filler.unlink()
    assert place.run("Report").code == 0
    assert place.digest() == whole_chain.digest()
    assert problems(place) == []


def test_a_read_only_workspace_serves_finished_stages_and_is_named_for_others(
    whole_chain: Place, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    disk = mounted()
    place = copy_of(whole_chain, tmp_path / "place", disk / "artifacts")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert place.run("Report").code == 0
    place.configure(epochs=EPOCHS + 1)
    command = place.run()
    assert command.code == 30
    assert command.output.count("the file system is read-only: choose another --workspace or remount it") == 1
    assert "Traceback" not in command.output
    assert place.digest() == whole_chain.digest()


# --- clocks -------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_while_training_and_files_from_the_future_change_nothing(
    place: Place, undisturbed: Undisturbed
) -> None:
    jump = shiftable_clock(place)
    command = place.start()
    command.wait_for(lambda: place.newest_step() > 10, "some steps")
    jump.touch()
    step = place.newest_step()
    command.wait_for(lambda: place.newest_step() > step + 10, "checkpoints after the clock was set back")
    command.kill()
    times = [event["time"] for event in place.events() if event["event"] in ("started", "stopped")]
    for path in place.workspace.rglob("*"):
        os.utime(path, (4e9, 4e9))
    command = place.run()
    assert command.code == 0, command.output
    assert place.events()[-1]["time"] < times[0]  # the clock really was set back
    assert place.digest() == undisturbed()
    assert place.history() == list(range(1, EPOCHS + 1))
