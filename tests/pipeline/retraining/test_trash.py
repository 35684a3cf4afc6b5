"""The trash: what was pruned or set aside can be restored, and never replaces anything."""

from __future__ import annotations

import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from generation_runs import current, make, pointer_of
from luigi_runs import TIMEOUT, SmallChain

from pipeline.errors import PipelineError, WorkspaceError
from pipeline.retraining import deletion, registry, retention, rollback, trash
from pipeline.storage import Storage, locks
from pipeline.workspace import RUN_FOLDERS, Workspace, events


def test_a_pruned_generation_can_be_restored_and_a_rollback_says_how(done: SmallChain) -> None:
    runs = [make(done, f"2026-W4{number}") for number in (1, 2, 3)]
    moved, left = retention.prune(done.chain(), retention.expired(done.chain(), 1))
    assert (len(moved), left) == (1, [])
    assert not runs[0].root.exists()
    with pytest.raises(PipelineError, match=r"no finished generation.*Restore --item 2026-W41 --confirm"):
        rollback.roll_back(done.chain(), "2026-W41")
    shutil.rmtree(runs[1].root)
    with pytest.raises(PipelineError, match=r"W42/train is missing.*W41/train is missing.*--item \S+W41 --confirm"):
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
    assert current(done).generation == "2026-W41"


def test_the_remains_of_a_killed_deletion_are_no_item_and_are_deleted_next_time(done: SmallChain) -> None:
    workspace, run = done.chain().workspace, done.run()
    trash.set_aside(done.chain(), "report", workspace.in_trash(run.stage("report")))
    (folder,) = workspace.trash.iterdir()
    folder.rename(folder.with_name(f".{folder.name}"))
    assert trash.items(workspace) == []
    assert deletion.old_trash(workspace, timedelta(days=1)) == []
    deletion.delete(workspace, deletion.old_trash(workspace, timedelta(seconds=-2)), [])
    assert list(workspace.trash.iterdir()) == []


def test_setting_a_training_aside_moves_its_checkpoints_too(done: SmallChain) -> None:
    workspace, run = done.chain().workspace, done.run()
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "step-000000001.npz").write_text("the next run would resume from it")
    # The timestamp is older: it is from the start of the command.
    trash.set_aside(done.chain(), "train", workspace.trash / "2026-11-01T000000Z" / run.place / "train")
    assert not run.checkpoints.exists()
    assert len(list(workspace.trash.rglob("checkpoints/step-000000001.npz"))) == 1
    (item,) = trash.items(workspace)
    assert trash.contents(workspace, item) == ["train", "checkpoints"]
    trash.restore(workspace, item)
    assert (run.checkpoints / "step-000000001.npz").exists()
    assert done.chain().complete("report")
    assert list(workspace.trash.iterdir()) == []


def test_the_older_of_two_items_with_the_same_path_can_be_chosen(done: SmallChain) -> None:
    workspace, run = done.chain().workspace, done.run()
    for when in ("2026-11-01T000000Z", "2026-11-02T000000Z"):
        shutil.copytree(run.stage("report"), workspace.trash / when / run.place / "report")
    named = [item for item in trash.items(workspace) if item.is_named(f"2026-11-01T000000Z/{run.place}")]
    assert [item.when for item in named] == ["2026-11-01T000000Z"]


def test_a_deletion_continues_after_an_error_and_then_raises_it(
    done: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = done.chain().workspace
    old = [workspace.locks / "a.lock", workspace.downloads / "mini-00000000.archive.part"]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))

    def fail(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(locks, "remove", fail)
    with pytest.raises(PermissionError, match=r"a\.lock"):
        deletion.delete(workspace, [], deletion.leftovers(workspace, timedelta(days=1)))
    assert not old[1].exists()


def test_a_file_touched_after_it_was_listed_is_not_deleted(done: SmallChain) -> None:
    workspace = done.chain().workspace
    partial = workspace.downloads / "mini-00000000.archive.part"
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("half of it")
    os.utime(partial, (0, 0))
    assert deletion.leftovers(workspace, timedelta(days=1)) == [partial]
    os.utime(partial)
    deletion.delete(workspace, [], [partial])
    assert partial.exists()
    os.utime(partial, (0, 0))
    with locks.hold(workspace.lock("mini-00000000"), "the data set", wait=False):
        deletion.delete(workspace, [], [partial])
    assert partial.exists()
    deletion.delete(workspace, [], [partial])
    assert not partial.exists()
    recorded = [event["leftovers"] for event in events.read(workspace) if event["event"] == "deleted"]
    assert recorded == [0, 0, 1]


def test_only_folders_named_as_data_sets_are_leftovers(done: SmallChain) -> None:
    workspace = done.chain().workspace
    photos, unfinished = (
        workspace.datasets / "my-photos" / "cat" / "1.png",
        workspace.dataset("mini-00000000") / "x.npy",
    )
    for path in (photos, unfinished):
        path.parent.mkdir(parents=True)
        path.touch()
        for old in (path, *path.parents[:2]):
            os.utime(old, (0, 0))
    assert deletion.leftovers(workspace, timedelta(days=1)) == [unfinished.parent]
    for arguments in ((), ("--confirm",)):
        pruned = done.luigi("Prune", "--older-than", "1d", *arguments)
        assert f"{unfinished.parent}, which has no result" in pruned.output
    assert photos.exists()
    assert not unfinished.exists()


def test_restoring_replaces_nothing_that_exists_again(done: SmallChain) -> None:
    workspace, run = done.chain().workspace, done.run()
    for stage_name in ("evaluate", "report"):
        workspace.move(run.stage(stage_name), workspace.in_trash(run.stage(stage_name)))
    run.stage("report").mkdir()
    entry = trash.items(workspace)[0]
    with pytest.raises(WorkspaceError, match="report: already exists; set it aside first"):
        trash.restore(workspace, entry)
    run.stage("report").rmdir()
    while found := trash.items(workspace):
        trash.restore(workspace, found[0])
    assert done.chain().complete("report")


def test_a_pointer_created_while_a_restore_waits_is_not_replaced(
    done: SmallChain, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vgg")
    make(done, "2026-W41")
    workspace, path = done.chain().workspace, pointer_of(done)
    rollback.retire(workspace, "mini/tiny")
    (item,) = trash.items(workspace)
    with ThreadPoolExecutor(1) as other:
        with registry.held(workspace, path):
            restored = other.submit(trash.restore, workspace, item)
            deadline = time.monotonic() + TIMEOUT
            while "updating the current model: waiting for process" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            make(done, "2026-W42")
        with pytest.raises(WorkspaceError, match=r"already exists; Retire --name mini/tiny --confirm first, then"):
            restored.result(TIMEOUT)
    assert current(done).generation == "2026-W42"
    assert trash.items(workspace) == [item]


def test_checkpoints_that_a_training_moved_to_the_trash_are_no_items_and_are_deleted_by_age(done: SmallChain) -> None:
    workspace = done.chain().workspace
    target = workspace.in_trash(done.run().checkpoints / "step-000000001.npz")
    target.parent.mkdir(parents=True)
    target.touch()
    of_earlier_version = workspace.trash / "tiny-00000000-step-000000001.npz"
    of_earlier_version.touch()
    assert trash.items(workspace) == []
    assert trash.unknown(workspace) == [of_earlier_version.name]
    assert deletion.old_trash(workspace, timedelta(days=1)) == deletion.leftovers(workspace, timedelta(days=1)) == []
    os.utime(of_earlier_version, (0, 0))
    files = deletion.leftovers(workspace, timedelta(days=1))
    deletion.delete(workspace, deletion.old_trash(workspace, timedelta(seconds=-2)), files)
    assert list(workspace.trash.iterdir()) == []


def test_a_file_that_disappears_while_leftovers_are_listed_is_no_error(
    done: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = done.chain().workspace
    partial = workspace.runs / "mini-00000000/tiny-00000000/train/.model.params.tmp"
    partial.parent.mkdir(parents=True)
    partial.touch()
    listed = Storage.files

    def files(storage: Storage, folder: Path) -> dict[str, int]:
        found = listed(storage, folder)
        if folder == partial.parents[1]:
            partial.unlink()
        return found

    monkeypatch.setattr(Storage, "files", files)
    assert deletion.leftovers(workspace, timedelta(days=1)) == []
    assert not partial.exists()


def test_nothing_behind_a_link_is_a_leftover_unless_runs_itself_is_the_link(tmp_path: Path) -> None:
    workspace, foreign = Workspace(tmp_path / "artifacts"), tmp_path / "projects"
    (tmp_path / "scratch").mkdir()
    workspace.root.mkdir()
    workspace.runs.symlink_to(tmp_path / "scratch")
    own = workspace.runs / "mini-00000000/tiny-00000000"
    for folder in (own, foreign / "thesis"):
        folder.mkdir(parents=True)
        (folder / "draft.txt").write_text("years of work")
    (workspace.runs / "x").symlink_to(foreign)
    (workspace.datasets / "mini-00000000").parent.mkdir()
    (workspace.datasets / "mini-00000000").symlink_to(foreign)
    for folder in (own, foreign / "thesis"):
        os.utime(folder / "draft.txt", (0, 0))
        os.utime(folder, (0, 0))
    planted = workspace.runs / "x/thesis"
    found = deletion.leftovers(workspace, timedelta(days=1))
    assert found == [own]
    deletion.delete(workspace, [], [*found, planted])  # as if it had become a link after it was listed
    assert not own.exists()
    assert (foreign / "thesis/draft.txt").read_text() == "years of work"
