"""The luigid client, against a real luigid that sometimes holds forged tasks."""

from __future__ import annotations

import copy
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from luigi_runs import SmallChain
from luigid_process import Luigid, luigid, wait_for

import tasks
from pipeline.workspace import Workspace
from tasks import gpus
from tasks.scheduler_client import LuigidClient, short_name

#: As in the sample luigi.cfg, but with shorter intervals.
KEEP_ALIVE = "[worker]\nkeep_alive = true\nwait_interval = 0.2\nwait_jitter = 0\n"


def test_a_task_that_somebody_else_submits_for_a_command_is_refused(
    prepared: SmallChain, central: Luigid, tmp_path: Path
) -> None:
    ran, evil = tmp_path / "ran", tmp_path / "evil.yaml"
    prepared.configure(training__epochs=100_000)
    values = copy.deepcopy(prepared.values)
    evil.write_text(yaml.safe_dump({**values, "launcher": ["touch", str(ran)]}))
    with prepared.start("TrainVGG", "--workers", "2", scheduler=central.scheduler) as command:
        task = wait_for(lambda: central.running("TrainVGG"), "the training to run")
        known = central.api("fetch_error", task_id=task["task_id"])
        for task_id, change in (("Evil", {"config": str(evil)}), ("Elsewhere", {"workspace": str(tmp_path / "new")})):
            params = {**known["taskParams"], "architecture": "", "settings": "", **change}
            about = {"worker": task["worker"], "family": "TrainVGG", "module": "tasks", "params": params}
            central.api("add_task", task_id=task_id, **about)
            wait_for(lambda task_id=task_id: f"{task_id}: refused" in command.output, "a refusal")  # type: ignore[misc]
        # So is a batch: luigid chooses its parameters.
        about["family"], about["batchable"] = "TrainVGG", True
        central.api("add_task_batcher", worker=task["worker"], task_family="TrainVGG", batched_args=["generation"])
        # Both depend on another task, so that luigid assigns them together.
        central.api("add_task", worker="nobody", task_id="Gate", runnable=False)
        for number in range(2):
            params = {**known["taskParams"], "architecture": "", "settings": "", "config": str(evil)}
            central.api("add_task", task_id=f"Batch{number}", deps=["Gate"], **{**about, "params": params})
        central.api("add_task", worker="nobody", task_id="Gate", status="DONE")
        wait_for(lambda: "Batch0, Batch1: refused" in command.output, "a refusal")
        central.send_message(task, "stop")
        assert command.finish() == 30, command.output
    assert "Traceback" not in command.output
    assert command.output.count("refused") == 3  # once each, however often luigid assigns it
    assert not ran.exists()
    assert not (tmp_path / "new").exists()


def test_a_training_that_luigid_forgot_is_registered_again_and_accepts_messages(
    prepared: SmallChain, central: Luigid
) -> None:
    prepared.configure(training__epochs=100_000)
    with prepared.start("Report", scheduler=central.scheduler) as command:
        wait_for(lambda: central.running("TrainVGG"), "the training to run")
        central.restart()
        task = wait_for(lambda: central.running("TrainVGG"), "luigid to see it again")
        assert task["accepts_messages"]
        wait_for(lambda: "epoch" in central.message(task["task_id"]), "its progress")
        assert central.send_message(task, "stop-after-epoch") == "ok"
        assert command.finish() == 30, command.output
    assert "luigid had lost track of the running tasks: registering them again" in command.output
    assert "stopped on request after an epoch" in command.output
    assert "step 0 of 5" in command.output
    assert {task["name"] for task in central.api("task_list", status="").values()} >= {"Report", "Evaluate"}


def test_a_restarted_luigid_gets_the_complete_worker_info_again(central: Luigid) -> None:
    client = LuigidClient(central.url)
    client.add_worker("w", [("pid", 4711), ("host", "box"), ("workers", 1)])
    client.add_worker("w", {"workers": 3})  # as Luigi's worker does after "set workers" on the page
    central.restart()
    client._register_all()
    (worker,) = central.api("worker_list")
    assert (worker["pid"], worker["host"], worker["workers"]) == (4711, "box", 3)


def test_a_command_that_luigid_took_for_dead_finishes(prepared: SmallChain, tmp_path: Path) -> None:
    """For example on a laptop that was suspended."""
    prepared.configure(training__epochs=50)
    file = tmp_path / "luigi.cfg"
    file.write_text(f"[scheduler]\nworker_disconnect_delay = 1\nstate_path = {tmp_path}/state.pickle\n")
    with luigid(tmp_path / "luigid", LUIGI_CONFIG_PATH=str(file)) as central:
        with prepared.start("Export", scheduler=central.scheduler) as command:
            wait_for(lambda: central.running("TrainVGG"), "the training to run")
            command.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: not central.api("worker_list"), "luigid to forget it")
            command.process.send_signal(signal.SIGCONT)
            assert command.finish() == 0, command.output
        assert "registering them again" in command.output or "registering the remaining" in command.output


def test_a_luigid_that_is_gone_for_good_costs_no_results(prepared: SmallChain, tmp_path: Path) -> None:
    prepared.configure(training__epochs=50)
    file = tmp_path / "luigi.cfg"
    file.write_text("[core]\nrpc_retry_wait = 1\nrpc_retry_attempts = 2\n")
    with luigid(tmp_path / "luigid") as central:
        with prepared.start("Report", scheduler=central.scheduler, LUIGI_CONFIG_PATH=str(file)) as command:
            wait_for(lambda: central.running("TrainVGG"), "the training to run")
            central.process.kill()
            central.process.wait()
            assert command.finish() == 35, command.output
        central.restart()
    assert prepared.manifest("train")["files"]
    heard, asked, left = [line for line in command.output.splitlines() if central.url in line]
    assert "is not responding; running tasks continue" in heard
    assert "is not responding: retrying every 1 s, 1 times" in asked
    assert "stopped responding (no connection): finished stages are kept" in left
    assert "Failed pinging" not in command.output
    assert "Traceback" not in command.output


def another_runs(central: Luigid, task_id: str, **about: Any) -> Callable[[], None]:
    """Register a running task of another command with luigid. Returns a function that reports it as done."""
    info = {"host": "box", "pid": 4711, **about.pop("info", {})}
    other = {"worker": "other", "task_id": task_id, **about}
    central.api("add_task", **other)
    central.api("add_worker", worker="other", info=list(info.items()))
    assert central.api("get_work", worker="other")["task_id"] == task_id
    return lambda: central.api("add_task", **other, status="DONE")


@pytest.mark.parametrize(("overlap", "host"), [("wait", "box"), ("leave", "box"), ("leave", socket.gethostname())])
def test_a_data_set_that_a_live_command_is_making_is_waited_for_or_left(
    fresh: SmallChain, central: Luigid, tmp_path: Path, overlap: str, host: str
) -> None:
    file = tmp_path / "luigi.cfg"
    file.write_text(f"[vgg]\noverlap = {overlap}\n{KEEP_ALIVE}")
    pointer = Workspace(fresh.workspace).source_pointer(fresh.chain().config.data)
    pid, dead = (4711, False) if host == "box" else (2**22 + 1, True)  # above the kernel's highest number
    about = {"family": "DownloadCifar", "resources": {f"data set {pointer}": 1}, "info": {"host": host, "pid": pid}}
    end = another_runs(central, "Making", **about)
    name = short_name(tasks.DownloadCifar(config=str(fresh.config), workspace=str(fresh.workspace)).task_id)
    line = f"{name}: data set {pointer} is taken by DownloadCifar of process 4711 on box"
    gone = f"Making: luigid listed it as running in process {pid} on {host}, which no longer exists"
    with fresh.start("DownloadCifar", scheduler=central.scheduler, LUIGI_CONFIG_PATH=str(file)) as command:
        if overlap == "wait":
            wait_for(lambda: f"{line}; waiting for it" in command.output, "a line about waiting")
            end()
        assert command.finish() == (0 if overlap == "wait" or dead else 10), command.output
    assert (command.output.count(line), command.output.count(gone)) == ((0, 1) if dead else (1, 0))


@pytest.mark.parametrize("overlap", ["wait", "leave"])
def test_a_task_that_another_command_runs_is_waited_for_or_left(
    done: SmallChain, central: Luigid, tmp_path: Path, overlap: str
) -> None:
    file = tmp_path / "luigi.cfg"
    file.write_text(f"[vgg]\noverlap = {overlap}\n{KEEP_ALIVE}")
    task = tasks.Report if overlap == "wait" else tasks.Evaluate
    name = task(config=str(done.config), workspace=str(done.workspace)).task_id
    run, away = done.folder("report").parent, tmp_path / "away"
    away.mkdir()
    for stage in {"report", task.stage}:
        shutil.move(run / stage, away)
    end = another_runs(central, name, family=task.__name__)
    with done.start("Report", scheduler=central.scheduler, LUIGI_CONFIG_PATH=str(file)) as command:
        if overlap == "wait":
            wait_for(lambda: "already running in process 4711 on box" in command.output, "a line about the other")
            for folder in away.iterdir():
                shutil.move(folder, run)
            end()
        assert command.finish() == (0 if overlap == "wait" else 10), command.output
    assert ("done by another command" in command.output) == (overlap == "wait")
    assert command.output.count("already running in process 4711 on box, according to luigid") == 1


def test_a_paused_luigid_is_reported_as_the_reason_for_doing_nothing(fresh: SmallChain, central: Luigid) -> None:
    central.api("pause")
    result = fresh.luigi("DownloadCifar", scheduler=central.scheduler)
    assert (result.rc, result.ran) == (25, []), result.text
    assert f"luigid is paused: continue on its page ({central.url}/" in result.log


def test_with_overlap_leave_a_command_still_waits_for_a_gpu(
    prepared: SmallChain, central: Luigid, tmp_path: Path
) -> None:
    prepared.configure(device="gpu:0")
    (card,) = gpus.resources("gpu:0")
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1}  # a live process in another container looks like this
    end = another_runs(central, "Training", family="Other", resources={card: 1}, info=dead)
    file = tmp_path / "luigi.cfg"
    file.write_text(f"[vgg]\noverlap = leave\n{KEEP_ALIVE}")
    with prepared.start("TrainVGG", scheduler=central.scheduler, LUIGI_CONFIG_PATH=str(file)) as command:
        wait_for(lambda: f"{card} is taken by Other" in command.output, "a line about the card")
        time.sleep(2)
        assert command.process.poll() is None, command.output
        end()
        assert command.finish() == 30, command.output
    assert "device: found gpu:0" in command.output  # it got the GPU, which does not exist here
