"""Two commands on one run, locks of dead processes, and a luigid that is killed, restarted or out of date."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import Place, another_host, copy_of, patient_client
from luigid_process import Luigid

from pipeline.errors import AlreadyRunning
from pipeline.storage import locks

Undisturbed = Callable[..., str]

WAIT = {"LUIGI_CONFIG_PATH": "wait.cfg"}


def configure_waiting(place: Place) -> None:
    (place.folder / "wait.cfg").write_text("[vgg]\noverlap=wait\n")


# --- two at once --------------------------------------------------------------------------------------------------


def test_one_of_two_identical_commands_trains_and_the_other_exits_with_10(place: Place) -> None:
    place.configure(epochs=3000)
    commands = [place.start(), place.start()]
    one, other = commands
    one.wait_for(lambda: other.code is not None or one.code is not None, "one of them to leave")
    loser = next(command for command in commands if command.code is not None)
    loser.check(10)
    assert loser.output.count("is already being worked on by process") == 1
    assert "nothing was done" in loser.output
    assert "Traceback" not in loser.output
    winner = next(command for command in commands if command is not loser)
    winner.wait_for(lambda: place.newest_step() > 0, "the first checkpoint")
    winner.send(signal.SIGTERM)
    winner.finish(143)
    assert place.started("train") == 1


@pytest.fixture
def hosts() -> tuple[str, str]:
    """The names of two hosts for `Place.start(host=…)`."""
    tried = subprocess.run([*another_host("box-one"), "hostname"], capture_output=True, text=True)
    if tried.stdout != "box-one\n":
        pytest.skip(f"another host cannot be made here: {tried.stderr.strip()}")
    return "box-one", "box-two"


def test_of_two_hosts_on_one_shared_folder_one_trains_and_the_other_takes_over_when_it_dies(
    place: Place, undisturbed: Undisturbed, hosts: tuple[str, str]
) -> None:
    first = place.start(host=hosts[0])
    first.wait_for(lambda: place.newest_step() > 0, "the first checkpoint")
    os.kill(first.process.pid, signal.SIGSTOP)
    for pid in first.children():
        os.kill(pid, signal.SIGSTOP)  # it must still be running, however slow the second command is
    second = place.start(host=hosts[1])
    second.finish(10)
    assert re.search(r"is already being worked on by process \d+ on box-one since", second.output), second.output
    first.kill()
    third = place.start(host=hosts[1])
    third.finish(0)
    assert "resumed from step-" in third.output
    assert place.digest() == undisturbed()


def test_with_overlap_wait_the_second_command_waits_and_then_has_nothing_to_do(
    place: Place, undisturbed: Undisturbed
) -> None:
    configure_waiting(place)
    first = place.start()
    first.wait_for(lambda: place.newest_step() > 0, "the first checkpoint")
    second = place.start(**WAIT)
    second.wait_for(lambda: "waiting for process" in second.output or first.code is not None, "a line about waiting")
    first.finish(0)
    second.finish(0)
    assert place.started("train") == 1
    assert place.digest() == undisturbed()


def test_the_same_command_line_in_another_folder_is_not_in_the_way(place: Place, tmp_path: Path) -> None:
    other = copy_of(place, tmp_path / "other")
    commands = []
    for one in (place, other):
        one.configure(epochs=300)
        commands.append(one.start(relative=True))
    for one, command in zip((place, other), commands, strict=True):
        command.wait_for(lambda one=one: one.newest_step() > 0, "a checkpoint")
        command.send(signal.SIGTERM)
        command.finish(143)


def test_the_lock_of_a_dead_process_is_no_obstacle(place: Place, undisturbed: Undisturbed) -> None:
    command = place.start()
    command.wait_for(lambda: place.newest_step() > 10, "some steps")
    command.send(signal.SIGKILL)  # rerun at once, while its child is alive and holds the lock
    command.process.wait()
    command = place.run()
    assert command.code == 0, command.output
    assert place.digest() == undisturbed()


def test_a_live_holder_is_named_and_a_holder_on_another_host_is_never_taken_for_dead(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with locks.hold(path, "it", wait=False):
        record = json.loads(path.read_text())
        assert record["pid"] == os.getpid()
        here = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(AlreadyRunning, match=here), locks.hold(path, "it", wait=False):
            pass
        path.write_text(json.dumps({**record, "host": "elsewhere", "pid": 2**22 + 1}))
        with pytest.raises(AlreadyRunning, match="on elsewhere"), locks.hold(path, "it", wait=False):
            pass
    assert locks.holder(path) is None


# --- luigid -------------------------------------------------------------------------------------------------------


def test_a_rerun_at_once_after_kill_9_runs_although_luigid_lists_the_dead_command(
    place: Place, central: Luigid, undisturbed: Undisturbed
) -> None:
    command = place.start("TrainVGG", *central.scheduler)
    command.wait_for(lambda: place.newest_step() > 10, "some steps")
    command.send(signal.SIGKILL)
    command.process.wait()
    command = place.run("TrainVGG", *central.scheduler)
    assert command.code == 0, command.output
    assert "luigid listed it as running in process" in command.output
    assert place.digest() == undisturbed()


def test_a_second_command_under_luigid_leaves_with_10(place: Place, central: Luigid) -> None:
    place.configure(epochs=3000)
    first = place.start("TrainVGG", *central.scheduler)
    first.wait_for(lambda: place.newest_step() > 0, "the first checkpoint")
    second = place.run("TrainVGG", *central.scheduler).check(10)
    assert f"already running in process {first.process.pid}" in second.output
    first.send(signal.SIGTERM)
    first.finish(143)
    assert place.started("train") == 1


def test_with_overlap_wait_a_second_command_under_luigid_waits_and_takes_over_when_the_first_is_stopped(
    place: Place, central: Luigid
) -> None:
    configure_waiting(place)
    place.configure(epochs=3000)
    first = place.start("TrainVGG", *central.scheduler)
    first.wait_for(lambda: place.newest_step() > 0, "the first checkpoint")
    second = place.start("TrainVGG", *central.scheduler, **WAIT)
    second.wait_for(lambda: "waiting for it" in second.output, "a line about waiting")
    first.send(signal.SIGTERM)
    first.finish(143)
    second.wait_for(lambda: "resumed from step-" in second.output, "the second to go on")
    second.send(signal.SIGTERM)
    second.finish(143)


def test_with_overlap_wait_a_second_command_under_luigid_ends_well_when_the_first_did_it_all(
    place: Place, central: Luigid
) -> None:
    configure_waiting(place)
    first = place.start("TrainVGG", *central.scheduler)
    first.wait_for(lambda: place.started("train"), "the training")
    second = place.start("TrainVGG", *central.scheduler, **WAIT)
    first.finish(0)
    second.finish(0)
    assert place.started("train") == 1


def test_luigid_killed_and_restarted_while_training_changes_nothing(
    place: Place, central: Luigid, undisturbed: Undisturbed
) -> None:
    patient_client(place)
    command = place.start("Export", *central.scheduler)
    command.wait_for(lambda: place.newest_step() > 10, "some steps")
    central.restart()
    command.finish(0)
    assert place.digest() == undisturbed()
    assert (place.stage("export") / "manifest.json").exists()
    assert place.started("train") == 1
