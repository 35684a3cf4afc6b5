"""Retention: which generations have expired, and what cannot be moved now."""

from __future__ import annotations

import pytest
from generation_runs import current, expired, make
from luigi_runs import SmallChain

from pipeline.retraining import generations, retention, rollback
from pipeline.storage import locks
from pipeline.workspace import RUN_FOLDERS


def test_promoted_generations_are_counted_and_the_rollback_target_is_always_kept(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    make(done, "2026-W43", "refused")
    assert expired(done, keep=2) == []
    assert expired(done, keep=1) == [], "the current one, its predecessor, and the newest, which would be made again"
    make(done, "2026-W44", "refused")
    assert expired(done, keep=2) == ["2026-W43"]
    make(done, "2026-W45", outcome="")
    assert expired(done, keep=1) == ["2026-W44", "2026-W43"], "the gate has not decided about the newest one yet"
    make(done, "by-hand", outcome="")
    make(done, "2026-W46")
    make(done, "2026-W47")
    never_decided = "2026-W45"  # its command was killed, and the gate would refuse it now
    assert expired(done, keep=3) == [never_decided, "2026-W44", "2026-W43", "2026-W41"]
    assert expired(done, keep=1) == [never_decided, "2026-W44", "2026-W43", "2026-W42", "2026-W41"]
    rollback.roll_back(done.chain())
    assert current(done).generation == "2026-W46"
    make(done, "2026-W48", "refused")
    assert "2026-W47" in expired(done, keep=3), "a rolled-back generation is treated as refused"
    assert not {"2026-W46", "2026-W42", "2026-W41"} & set(expired(done, keep=3))


def test_a_late_generation_of_an_earlier_week_does_not_expire_this_weeks(done: SmallChain) -> None:
    make(done, "2026-W47")
    make(done, "2026-W48", "refused")
    make(done, "2026-W40", "refused")
    assert expired(done, keep=1) == []


@pytest.mark.parametrize("busy", [*RUN_FOLDERS, "train-process"])
def test_a_run_with_a_busy_stage_is_not_moved(done: SmallChain, busy: str) -> None:
    run = make(done, "2026-W41", "refused")
    make(done, "2026-W42", "refused")
    with locks.hold(run.lock(busy), busy, wait=False):
        moved, left = retention.prune(done.chain(), generations.find(done.chain().workspace, done.chain().config)[1:])
    assert moved == []
    assert "generation 2026-W41 is already being worked on by process" in left[0]
    assert run.root.exists()


def test_a_generation_that_has_become_current_is_not_pruned(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    chosen = [item for item in generations.find(done.chain().workspace, done.chain().config) if item.name == "2026-W41"]
    rollback.roll_back(done.chain())
    reason = "generation 2026-W41 is now the current model, or the target of a rollback"
    assert retention.prune(done.chain(), chosen) == ([], [reason])


def test_a_generation_that_another_command_pruned_is_reported_and_skipped(done: SmallChain) -> None:
    for week in (41, 42, 43):
        make(done, f"2026-W{week}", "refused")
    chosen = generations.find(done.chain().workspace, done.chain().config)[1:]
    assert len(retention.prune(done.chain(), chosen[1:])[0]) == 1
    moved, left = retention.prune(done.chain(), chosen)
    assert len(moved) == 1
    assert left == ["generation 2026-W41 has already been moved"]
