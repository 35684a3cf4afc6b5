"""Several workers, workers that die, retries: the exit code tells the truth in each case."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from luigi_runs import SmallChain, clean_environment, luigi_command
from luigid_process import luigid, wait_for


def test_four_workers_make_what_one_makes(prepared: SmallChain, finished: SmallChain) -> None:
    result = prepared.luigi("Report", "--workers", "4")
    assert result.rc == 0, result.text
    assert result.ran == ["train", "evaluate", "export", "report"]
    assert prepared.manifest("train")["files"]["model.params"] == finished.manifest("train")["files"]["model.params"]
    again = prepared.luigi("Report", "--workers", "4")
    assert (again.rc, again.ran) == (0, [])


@pytest.mark.parametrize("workers", ["1", "4"])
def test_a_stage_that_fails_ends_with_30_with_any_number_of_workers(prepared: SmallChain, workers: str) -> None:
    prepared.configure(training__init_from="there-is-no-such.params")
    result = prepared.luigi("Report", "--workers", workers)
    assert result.rc == 30, result.text
    assert result.ran == ["train"]
    assert "there-is-no-such.params" in result.log
    assert "Traceback" not in result.log


def _children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(folder.name))
    return found


def test_a_worker_that_is_killed_fails_its_task_and_leaves_nothing_running(prepared: SmallChain) -> None:
    """With --workers 2 each task runs in a process that Luigi forked; here the kernel kills it in mid-training."""
    prepared.configure(training__epochs=100_000)
    command = [*luigi_command(), "--module", "tasks", "TrainVGG", "--config", str(prepared.config), "--workers", "2"]
    command += ["--workspace", str(prepared.workspace), "--local-scheduler"]
    output = prepared.root / "output.txt"
    with open(output, "wb") as file:
        process = subprocess.Popen(command, cwd=prepared.cwd, env=clean_environment(), stdout=file, stderr=file)
    try:
        wait_for(lambda: "epoch 1/" in output.read_text(), "the training to run")
        (worker,) = _children(process.pid)
        (training,) = _children(worker)
        os.kill(worker, signal.SIGKILL)
        code = process.wait(timeout=120)
        wait_for(lambda: not Path(f"/proc/{training}").exists(), "the training to end with it")
    finally:
        process.kill()
        process.wait()
    assert code == 30, output.read_text()
    # What it had done is not lost.
    prepared.configure(training__epochs=1)
    assert prepared.luigi("TrainVGG").rc == 0


def test_a_task_is_left_alone_after_its_retries_and_the_code_says_so(prepared: SmallChain, tmp_path: Path) -> None:
    broken = ("--vgg-launcher", "false")  # no training starts: as with a machine that is not there
    policy = ("--scheduler-retry-count", "2", "--scheduler-retry-delay", "0", "--worker-keep-alive")
    policy += ("--worker-wait-interval", "0.1")
    result = prepared.luigi("Export", *policy, *broken)
    assert result.rc == 30, result.text
    assert result.ran == ["train", "train"]
    # Under a luigid that remembers it, a later command does not even try, and does not end with 0.
    (tmp_path / "luigid").mkdir()
    file = tmp_path / "luigi.cfg"
    file.write_text(f"[scheduler]\nretry_count = 1\nstate_path = {tmp_path}/state.pickle\n")
    with luigid(tmp_path / "luigid", LUIGI_CONFIG_PATH=str(file)) as central:
        assert prepared.luigi("Export", *broken, scheduler=central.scheduler).rc == 30
        later = prepared.luigi("Export", scheduler=central.scheduler)
        assert later.ran == []
        assert later.rc == 25, later.text
