"""A stage as a Luigi task: which stages' processes it starts early, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from luigi.scheduler import Scheduler
from luigi.worker import Worker
from luigi_runs import SmallChain

import tasks
from pipeline.process import parent
from tasks import stage


def started_early(task: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[set[str], set[str]]]:
    """Stage -> the stages that are started early when it begins, and those when its work is nearly done."""
    monkeypatch.setattr(stage, "is_command", lambda: True)
    early: set[str] = set()
    monkeypatch.setattr(parent, "start_early", lambda stage, chain: early.add(stage))
    found: dict[str, tuple[set[str], set[str]]] = {}

    def run_stage(name: str, chain: Any, on_event: Any, **about: Any) -> None:
        begun = early.copy()
        on_event({"event": "finishing"})
        found[name] = begun, early - begun
        early.clear()

    monkeypatch.setattr(parent, "run_stage", run_stage)
    with Worker(scheduler=Scheduler()) as worker:
        worker.add(task(config=str(config), workspace=str(config.parent / "artifacts")))
        for one in worker._scheduled_tasks.values():
            one._run_stage(one.chain, [], ["no result yet"])
    return found


def test_a_stage_starts_the_next_ones_early_and_a_training_when_it_is_finishing(tmp_path, monkeypatch):
    assert started_early(tasks.Report, SmallChain(tmp_path / "chain").config, monkeypatch) == {
        "dataset": ({"train"}, set()),
        "train": (set(), {"evaluate", "export"}),
        "evaluate": ({"report"}, set()),
        "export": ({"report"}, set()),
        "report": (set(), set()),
    }


def test_only_stages_that_were_asked_for_and_run_here_are_started_early(tmp_path, monkeypatch):
    chain = SmallChain(tmp_path / "chain")
    chain.configure(launcher=["env"])
    assert started_early(tasks.Evaluate, chain.config, monkeypatch) == {
        "dataset": (set(), set()),
        "train": (set(), {"evaluate"}),
        "evaluate": (set(), set()),
    }
