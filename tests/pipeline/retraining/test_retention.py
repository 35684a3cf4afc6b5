"""Retention: which generations have expired, and what cannot be moved now."""

from __future__ import annotations

import pytest
from generation_runs import current, expired, make
from luigi_runs import SmallChain

from pipeline.retraining import generations, retention, rollback
from pipeline.storage import locks
from pipeline.workspace import RUN_FOLDERS


def test_what_was_promoted_counts_and_the_way_back_always_stays(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    make(done, "2026-W43", "refused")
    assert expired(done, keep=2) == []
    assert expired(done, keep=1) == [], "the current one, the one before it, and the newest, which would be made again"
    make(done, "2026-W44", "refused")
    assert expired(done, keep=2) == ["2026-W43"]
    make(done, "2026-W45", outcome="")
    assert expired(done, keep=1) == ["2026-W44", "2026-W43"], "nobody has decided about the newest yet"
    make(done, "2026-W46")
    make(done, "2026-W47")
    assert expired(done, keep=3) == ["2026-W44", "2026-W43", "2026-W41"]
    assert expired(done, keep=1) == ["2026-W44", "2026-W43", "2026-W42", "2026-W41"]
    rollback.roll_back(done.chain())
    assert current(done).generation == "2026-W46"
    make(done, "2026-W48", "refused")
    assert "2026-W47" in expired(done, keep=3), "what was rolled back is as good as refused"
    assert not {"2026-W46", "2026-W42", "2026-W41"} & set(expired(done, keep=3))


def test_a_generation_made_late_for_an_earlier_week_does_not_push_out_that_of_this_week(done: SmallChain) -> None:
    make(done, "2026-W47")
    make(done, "2026-W48", "refused")
    make(done, "2026-W40", "refused")
    assert expired(done, keep=1) == []


@pytest.mark.parametrize("busy", [*RUN_FOLDERS, "train-process"])
def test_a_run_of_which_any_stage_is_worked_on_is_not_moved(done: SmallChain, busy: str) -> None:
    run = make(done, "2026-W41", "refused")
    make(done, "2026-W42", "refused")
    with locks.hold(run.lock(busy), busy, wait=False):
        moved, left = retention.prune(done.chain(), generations.find(done.chain().workspace, done.chain().config)[1:])
    assert moved == []
    assert "generation 2026-W41 is already being worked on by process" in left[0]
    assert run.root.exists()


def test_a_generation_that_became_current_meanwhile_is_not_pruned(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    chosen = [item for item in generations.find(done.chain().workspace, done.chain().config) if item.name == "2026-W41"]
    rollback.roll_back(done.chain())
    told = "generation 2026-W41 has become the current one, or the one before it"
    assert retention.prune(done.chain(), chosen) == ([], [told])


def test_what_another_command_pruned_meanwhile_is_told_and_stops_nothing(done: SmallChain) -> None:
    for week in (41, 42, 43):
        make(done, f"2026-W{week}", "refused")
    chosen = generations.find(done.chain().workspace, done.chain().config)[1:]
    assert len(retention.prune(done.chain(), chosen[1:])[0]) == 1
    moved, left = retention.prune(done.chain(), chosen)
    assert len(moved) == 1
    assert left == ["generation 2026-W41 was moved meanwhile"]
