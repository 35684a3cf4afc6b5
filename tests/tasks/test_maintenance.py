"""Status, SetAside and Verify as users run them; the other maintenance tasks on an unusable workspace."""

from __future__ import annotations

import datetime
import errno
import json
import os
import shutil

import luigi
import pytest
from luigi.scheduler import Scheduler
from luigi.worker import Worker
from luigi_runs import assert_fails_clearly

import tasks
from pipeline.errors import ConfigError, WorkspaceError
from pipeline.retraining import deletion, retention
from pipeline.storage import locks
from pipeline.verify import verify


def test_status_of_a_fresh_workspace_says_what_would_run_and_creates_nothing(fresh):
    lines = fresh.status().splitlines()
    assert lines[1].split(None, 3)[:3] == ["dataset", "will", "run"]
    assert "no data set from" in lines[1]
    assert [line.split()[0] for line in lines[1:]] == ["dataset", "train", "evaluate", "export", "report"]
    assert not any(" done " in line for line in lines)
    result = fresh.luigi("Status", "--json")
    assert (result.rc, json.loads(result.output)["done"]) == (3, False)
    assert not fresh.workspace.exists()


def test_set_aside_previews_and_moves_on_confirmation(done):
    folder = done.folder("evaluate")
    before = done.files()
    preview = done.luigi("SetAside", "--stage", "evaluate")
    assert preview.rc == 0, preview.text
    assert f"would move {folder}" in preview.output
    assert "report" in preview.output
    assert done.files() == before
    moved = done.luigi("SetAside", "--stage", "evaluate", "--confirm")
    assert moved.rc == 0, moved.text
    assert not folder.exists()
    trash = list((done.workspace / "trash").rglob("metrics.json"))
    assert len(trash) == 1, "the files are kept"
    assert done.report().ran == ["evaluate"]


def test_the_printed_command_restores_a_data_set_beside_pruned_runs_of_it(done):
    folder = done.folder("dataset")
    shutil.copytree(done.run().root, done.workspace / "trash" / "2026-01-01T000000Z" / done.run("old").place)
    moved = done.luigi("SetAside", "--stage", "dataset", "--confirm")
    (command,) = (line.strip() for line in moved.output.splitlines() if "restores it" in line)
    restored = done.luigi(*command.removesuffix(" restores it").split())
    assert restored.rc == 0, restored.text
    assert (folder / "manifest.json").exists()


def test_a_missing_stage_cannot_be_set_aside(fresh):
    assert_fails_clearly(
        fresh.luigi("SetAside", "--stage", "train", "--confirm"), 30, "there is no train of tiny to set aside"
    )


def test_verify_does_not_call_unfinished_or_running_stages_damaged(done):
    workspace, run = done.chain().workspace, done.chain().run()
    for path in done.folder("report").iterdir():  # the state that an interrupted stage leaves
        if path.name != "report.log":
            path.unlink()
    (done.folder("report") / "report.log").touch()
    model = done.folder("export") / "model.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    with locks.hold(run.lock("export"), "export", wait=False):
        result = verify(workspace)
    assert result.damaged == []
    assert [line.partition(": ")[0] for line in result.unfinished] == [f"{run.place}/export", f"{run.place}/report"]
    assert f"export: being worked on by process {os.getpid()} on " in result.unfinished[0]
    assert "report: the next run makes it" in result.unfinished[1]
    result = done.luigi("Verify")
    assert_fails_clearly(result, 4, "export/model.onnx is damaged")
    shutil.rmtree(done.folder("export"))
    again = done.luigi("Verify")
    assert again.rc == 0, again.text
    assert "no damage; 1 unfinished" in again.output


def test_verify_reads_the_pointers_too(done):
    pointer = done.chain().workspace.current(done.chain().config)
    pointer.parent.mkdir(parents=True)
    pointer.write_text("{")
    (line,) = verify(done.chain().workspace).damaged
    assert f"{pointer}: damaged" in line


def test_verify_of_a_missing_workspace_fails(fresh):
    assert_fails_clearly(fresh.luigi("Verify"), 30, f"{fresh.workspace}: there is no workspace here")
    fresh.workspace.mkdir()
    assert fresh.luigi("Verify").rc == 0


@pytest.fixture
def blocked_locks(done):
    """A file in place of the locks' folder."""
    folder = done.chain().workspace.locks
    shutil.rmtree(folder)
    folder.write_text("in the way")
    return folder


@pytest.mark.parametrize("task", ["Rollback", "Prune"])
def test_locks_that_cannot_be_created_are_reported_in_one_line(done, blocked_locks, task):
    more = ["--confirm"] if task == "Prune" else []
    assert_fails_clearly(done.luigi(task, *more), 30, f"{blocked_locks}: cannot use the workspace: ")


def test_retrain_reports_locks_that_cannot_be_created(done, blocked_locks):
    with pytest.raises(WorkspaceError, match=f"{blocked_locks}: cannot use the workspace: "):
        tasks.Retrain(config=str(done.config), workspace=str(done.workspace)).run()


@pytest.mark.parametrize("task", [tasks.Rollback, tasks.Retire, tasks.Prune, tasks.Restore])
def test_tasks_that_are_not_about_one_generation_reject_one(done, task):
    with pytest.raises(ConfigError, match=f"--generation: found 2026-W47, but {task.__name__} takes (--|none)"):
        task(config=str(done.config), workspace=str(done.workspace), generation="2026-W47")


def prune(chain, **more):
    age = datetime.timedelta(days=30)
    tasks.Prune(config=str(chain.config), workspace=str(chain.workspace), older_than=age, **more).run()


@pytest.fixture
def old_trash(done):
    folder = done.workspace / "trash/2026-01-01T000000Z/runs/d/r"
    folder.mkdir(parents=True)
    (folder / "model.params").write_text("of long ago")
    return folder


def test_prune_counts_files_that_another_prune_just_deleted_as_empty(done, monkeypatch, capsys):
    monkeypatch.setattr(deletion, "leftovers", lambda workspace, age: [workspace.work / "gone"])
    prune(done)
    assert "would permanently delete 0 trash folders and 1 leftover (0 B)" in capsys.readouterr().out


def test_prune_moves_what_it_can_if_something_cannot_be_deleted(done, old_trash, monkeypatch, capsys):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "trash/x")

    monkeypatch.setattr(deletion, "delete", refused)
    with pytest.raises(WorkspaceError, match="trash/x: cannot delete it: permission denied"):
        prune(done, confirm=True)
    assert "nothing to prune" in capsys.readouterr().out


def test_prune_deletes_before_it_moves(done, old_trash, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(retention, "prune", no_room)
    with pytest.raises(WorkspaceError, match="the disk is full"):
        prune(done, confirm=True)
    assert not old_trash.exists()


class AfterVerify(luigi.Task):
    workspace = luigi.Parameter()
    ran = False

    def requires(self):
        return tasks.Verify(workspace=self.workspace)

    def complete(self):
        return self.ran

    def run(self):
        self.ran = True


def build(task):
    """Like `luigi.build`."""
    with Worker(scheduler=Scheduler(), no_install_shutdown_handler=True) as worker:
        worker.add(task)
        assert worker.run()


def test_each_build_runs_a_command_again_and_tasks_that_require_it_find_it_done(done, capsys):
    for times in (1, 2):
        build(tasks.Verify(workspace=str(done.workspace)))
        assert capsys.readouterr().out.count("no damage") == 1, times
    after = AfterVerify(workspace=str(done.workspace))
    build(after)
    assert after.ran
    assert capsys.readouterr().out.count("no damage") == 1
