"""The trash: what was pruned or set aside comes back, and replaces nothing."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest
from generation_runs import current, make
from luigi_runs import SmallChain

from pipeline.errors import PipelineError, WorkspaceError
from pipeline.retraining import deletion, retention, rollback, trash
from pipeline.workspace import RUN_FOLDERS


def test_what_was_pruned_comes_back_and_a_roll_back_says_how(done: SmallChain) -> None:
    runs = [make(done, f"2026-W4{number}") for number in (1, 2, 3)]
    moved, left = retention.prune(done.chain(), retention.expired(done.chain(), 1))
    assert (len(moved), left) == (1, [])
    assert not runs[0].root.exists()
    with pytest.raises(PipelineError, match=r"no finished generation.*Restore --item 2026-W41 --confirm"):
        rollback.roll_back(done.chain(), "2026-W41")
    shutil.rmtree(runs[1].root)
    with pytest.raises(PipelineError, match=r"W42/train is gone.*W41/train is gone.*Restore --item \S+W41 --confirm"):
        rollback.roll_back(done.chain())
    workspace = done.chain().workspace
    (entry,) = trash.items(workspace)
    assert entry.is_named("2026-W41")
    assert not entry.is_named("2026-W4")
    assert trash.contents(workspace, entry) == ["evaluate", "export", "promote", "report", "train"]
    assert trash.restore(workspace, entry) == [str(runs[0].stage(name)) for name in sorted(RUN_FOLDERS)]
    assert trash.items(workspace) == []
    assert not list(workspace.trash.iterdir())
    rollback.roll_back(done.chain())
    assert current(done) == "2026-W41"


def test_what_an_earlier_version_moved_to_the_trash_is_named_but_not_guessed_about(done: SmallChain) -> None:
    workspace = done.chain().workspace
    for name in ("2026-11-01T101112Z-tiny-00000000-evaluate", "tiny-00000000-step-3.npz", "2026-11-01T101113Z"):
        (workspace.trash / name).mkdir(parents=True)
        (workspace.trash / name / "manifest.json").write_text("{}")
    assert trash.items(workspace) == []
    assert trash.unknown(workspace) == ["2026-11-01T101112Z-tiny-00000000-evaluate", "tiny-00000000-step-3.npz"]


def test_what_a_killed_deletion_left_is_no_item_of_the_trash_and_goes_with_the_next_one(done: SmallChain) -> None:
    workspace, run = done.chain().workspace, done.chain().run()
    assert run
    trash.set_aside(done.chain(), "report", trash.target(workspace, run.stage("report")))
    (folder,) = workspace.trash.iterdir()
    folder.rename(folder.with_name(f".{folder.name}"))
    assert trash.items(workspace) == []
    assert trash.unknown(workspace) == []
    assert deletion.old_trash(workspace, timedelta(days=1)) == []
    deletion.delete(workspace, deletion.old_trash(workspace, timedelta(seconds=-2)), [])
    assert list(workspace.trash.iterdir()) == []


def test_nothing_that_is_there_again_is_replaced_by_what_is_in_the_trash(done: SmallChain) -> None:
    workspace, run = done.chain().workspace, done.chain().run()
    assert run
    for stage_name in ("evaluate", "report"):
        workspace.move(run.stage(stage_name), trash.target(workspace, run.stage(stage_name)))
    run.stage("report").mkdir()
    entry = trash.items(workspace)[0]
    with pytest.raises(WorkspaceError, match="report: exists again; set that aside first"):
        trash.restore(workspace, entry)
    run.stage("report").rmdir()
    while found := trash.items(workspace):
        trash.restore(workspace, found[0])
    assert done.chain().complete("report")
