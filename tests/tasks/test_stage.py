"""Which stages a stage task starts early, and when."""

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
    """Stage -> the stages started early when it begins, and those started when it is finishing."""
    monkeypatch.setattr(stage, "is_command", lambda: True)
    early: set[str] = set()
    monkeypatch.setattr(parent, "start_early", lambda stage, chain: early.add(stage))
    started: dict[str, tuple[set[str], set[str]]] = {}

    def run_stage(name: str, chain: Any, on_event: Any, **about: Any) -> None:
        at_start = early.copy()
        on_event({"event": "finishing"})
        started[name] = at_start, early - at_start
        early.clear()

    monkeypatch.setattr(parent, "run_stage", run_stage)
    with Worker(scheduler=Scheduler()) as worker:
        worker.add(task(config=str(config), workspace=str(config.parent / "artifacts")))
        for scheduled in worker._scheduled_tasks.values():
            scheduled._run_stage(scheduled.chain, [], ["no result yet"])
    return started


def test_a_stage_starts_the_next_ones_early_and_a_training_does_so_when_finishing(tmp_path, monkeypatch):
    assert started_early(tasks.Report, SmallChain(tmp_path / "chain").config, monkeypatch) == {
        "dataset": ({"train"}, set()),
        "train": (set(), {"evaluate", "export"}),
        "evaluate": ({"report"}, set()),
        "export": ({"report"}, set()),
        "report": (set(), set()),
    }


def test_only_requested_stages_that_run_here_are_started_early(tmp_path, monkeypatch):
    chain = SmallChain(tmp_path / "chain")
    chain.configure(launcher=["env"])
    assert started_early(tasks.Evaluate, chain.config, monkeypatch) == {
        "dataset": (set(), set()),
        "train": (set(), {"evaluate"}),
        "evaluate": (set(), set()),
    }
