"""Every way to end a running command: what it leaves behind, how fast, its exit code; kill -9 in each stage."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import STEPS, Command, Place

from pipeline.storage import locks

Undisturbed = Callable[..., str]

#: Seconds that a stop may take, and what a busy machine may add.
WITHIN, SLACK = 10.0, 20.0


def training(place: Place, *arguments: str) -> Command:
    """Start a long training and wait until it is under way."""
    place.configure(epochs=3000)
    command = place.start("TrainVGG", *arguments)
    command.wait_for(lambda: place.newest_step() > 5, "some steps")
    return command


def nothing_is_left(place: Place, command: Command, seconds: float = WITHIN + SLACK) -> None:
    """Assert that no process and no lock is left, and that there is a checkpoint to resume from."""
    command.wait_until_gone(seconds)
    for path in (place.workspace / "work" / "locks").glob("*.lock"):
        # A process is gone when its main thread ends; its locks are released with the last thread.
        deadline = time.monotonic() + SLACK
        while locks.holder(path) is not None:
            assert time.monotonic() < deadline, path.name
            time.sleep(0.01)
    assert place.checkpoints()
    # What a kill left half written is removed by the next run.
    assert "Traceback" not in command.output


@pytest.mark.parametrize(
    ("number", "code", "group", "workers"),
    [
        pytest.param(signal.SIGTERM, 143, False, "1", id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, True, "1", id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, False, "2", id="SIGTERM with two workers"),
        pytest.param(signal.SIGTERM, 143, True, "2", id="SIGTERM for the whole group with two workers"),
        pytest.param(signal.SIGINT, 130, False, "2", id="SIGINT for the command with two workers"),
        pytest.param(signal.SIGINT, 130, True, "2", id="Ctrl-C with two workers"),
    ],
)
def test_a_signal_writes_a_checkpoint_and_ends_everything(
    place: Place, number: int, code: int, group: bool, workers: str
) -> None:
    command = training(place, "--workers", workers)
    asked = time.monotonic()
    if group:  # as a terminal does with Ctrl-C
        os.killpg(command.process.pid, number)
    else:
        command.send(number)
    assert command.finish() == code
    nothing_is_left(place, command)
    assert time.monotonic() - asked < WITHIN + SLACK
    assert place.log().count("stopped on request: checkpoint written at epoch") == 1
    assert "run the same command again to resume" in command.output
    assert [event["event"] for event in place.events()][-2:] == ["started", "stopped"]


def test_sigterm_on_the_stages_own_process_writes_a_checkpoint_and_fails_the_task(place: Place) -> None:
    command = training(place)
    os.kill(command.child(), signal.SIGTERM)
    command.finish(30)
    nothing_is_left(place, command)
    assert "stopped on request: checkpoint written at epoch" in command.output


def test_a_second_ctrl_c_ends_at_once(place: Place) -> None:
    command = training(place)
    child = command.child()
    os.kill(child, signal.SIGSTOP)  # it cannot write its checkpoint now
    command.send(signal.SIGINT)
    command.wait_for(lambda: time.sleep(0.5) or True, "half a second")
    assert command.code is None
    again = time.monotonic()
    command.send(signal.SIGINT)
    assert command.finish() == 130
    assert time.monotonic() - again < 5 + SLACK
    nothing_is_left(place, command)
    assert "train: stopped at once" in command.output


def test_a_child_that_does_not_react_is_ended_after_the_time_it_had(place: Place) -> None:
    command = training(place)
    os.kill(command.child(), signal.SIGSTOP)
    asked = time.monotonic()
    command.send(signal.SIGTERM)
    assert command.finish() == 143
    nothing_is_left(place, command)
    assert time.monotonic() - asked < 15 + SLACK


@pytest.mark.parametrize("workers", ["1", "2"])
def test_kill_9_of_the_command_ends_its_processes_after_a_last_checkpoint(place: Place, workers: str) -> None:
    command = training(place, "--workers", workers)
    command.send(signal.SIGKILL)
    command.process.wait()
    nothing_is_left(place, command)
    assert place.log().count("stopped on request: checkpoint written at epoch") == 1


def test_kill_9_of_the_training_is_reported_in_one_line_and_the_next_run_resumes(place: Place) -> None:
    command = training(place)
    os.kill(command.child(), signal.SIGKILL)
    command.finish(30)
    nothing_is_left(place, command)
    assert "train tiny-" in command.output
    assert ": its process was killed (SIGKILL: by the out-of-memory killer or by hand)" in command.output
    place.configure(epochs=place.newest_step() // STEPS + 2)
    command = place.run()
    assert command.code == 0
    assert "resumed from step-" in command.output


@pytest.mark.parametrize("stage", ["dataset", "evaluate", "export", "report"])
def test_kill_9_in_each_other_stage_costs_only_that_stage(
    finished: Place, whole_chain: Place, archive: Path, stage: str
) -> None:
    for path in (finished.stage(stage) / "manifest.json", finished.stage("report") / "manifest.json"):
        path.unlink(missing_ok=True)
    before = finished.started(stage)
    command = finished.start("Report")
    command.wait_for(lambda: finished.started(stage) > before, f"the {stage} stage")
    child = command.child()
    command.kill()
    assert locks.is_gone(child)
    trained = finished.started("train")
    command = finished.run("Report")
    assert command.code == 0, command.output
    assert finished.digest() == whole_chain.digest()
    assert finished.started("train") == trained
    assert finished.run("Verify").code == 0
    assert not [path for path in finished.workspace.glob("**/.*") if path.name.endswith(".tmp")]
