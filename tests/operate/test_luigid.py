"""What luigid may ask of a command, and what a command tells luigid: with a real one, and words put into its mouth."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from luigi_runs import SmallChain
from luigid_process import Luigid, luigid, started, wait_for


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Luigid]:
    with luigid(tmp_path / "luigid") as process:
        yield process


def test_a_task_that_somebody_else_hands_to_a_command_through_luigid_is_refused(
    prepared: SmallChain, central: Luigid, tmp_path: Path
) -> None:
    ran, evil = tmp_path / "ran", tmp_path / "evil.yaml"
    prepared.configure(training__epochs=100_000)
    values = copy.deepcopy(prepared.values)
    evil.write_text(yaml.safe_dump({**values, "launcher": ["touch", str(ran)]}))
    with started(prepared, "TrainVGG", central, "--workers", "2") as command:
        task = wait_for(lambda: central.running("TrainVGG"), "the training to run")
        known = central.api("fetch_error", task_id=task["task_id"])
        for task_id, change in (("Evil", {"config": str(evil)}), ("Elsewhere", {"workspace": str(tmp_path / "new")})):
            params = {**known["taskParams"], "architecture": "", "settings": "", **change}
            about = {"worker": task["worker"], "family": "TrainVGG", "module": "tasks", "params": params}
            central.api("add_task", task_id=task_id, **about)
            wait_for(lambda task_id=task_id: f"{task_id}: refused" in command.output, "a refusal")  # type: ignore[misc]
        # A batch is told by its parameters, whatever the names in it.
        about["family"], about["batchable"] = "TrainVGG", True
        central.api("add_task_batcher", worker=task["worker"], task_family="TrainVGG", batched_args=["generation"])
        for number in range(2):
            params = {**known["taskParams"], "architecture": "", "settings": "", "config": str(evil)}
            central.api("add_task", task_id=f"Batch{number}", **{**about, "params": params})
        wait_for(lambda: "Batch0, Batch1: refused" in command.output, "a refusal")
        central.tell(task, "stop")
        assert command.end() == 30, command.output
    assert "Traceback" not in command.output
    assert command.output.count("refused") == 3  # once each, not whenever luigid asks
    assert not ran.exists()
    assert not (tmp_path / "new").exists()
