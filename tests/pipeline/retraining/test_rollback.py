"""Changing the current model by hand: rolling back and retiring."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import shutil
import time
from pathlib import Path

import msgspec
import pytest
from generation_runs import current, make, pointer_of, retrain
from luigi_runs import SmallChain

import tasks
from pipeline import predict, status
from pipeline.errors import PipelineError, WorkspaceError
from pipeline.files import read_json
from pipeline.retraining import promotion, registry, retention, rollback, served, trash
from pipeline.storage import LOCAL
from pipeline.verify import verify


def test_a_rollback_skips_identical_weights_and_can_be_undone(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42", weights="same")
    make(done, "2026-W43", weights="same")
    old, new = rollback.roll_back(done.chain())
    assert (old.generation, new.generation) == ("2026-W43", "2026-W41")
    # Neither of the two is promoted again.
    twin = done.run("2026-W44")
    shutil.copytree(done.folder("train", "2026-W42"), twin.stage("train"))
    decision = promotion.decide(twin, current(done), 1.0, None, 0.0)
    assert decision["outcome"] == "refused"
    assert "the very same weights as " in decision["reason"]
    place = done.run("2026-W43").root
    pruned = place.rename(done.workspace / "pruned")
    assert promotion.decide(twin, current(done), 1.0, None, 0.0)["reason"] == decision["reason"]
    pruned.rename(place)
    # After making it current again, a rollback works as before.
    rollback.roll_back(done.chain(), "2026-W43")
    rollback.roll_back(done.chain())
    assert current(done).generation == "2026-W41"


def test_a_rollback_skips_a_model_that_cannot_be_read(done: SmallChain, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("2026-W41", "2026-W42", "2026-W43"):
        make(done, name)
    size, stale = LOCAL.size, done.folder("train", "2026-W42")

    def failing_size(path: Path) -> int:
        if stale in path.parents:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return size(path)

    monkeypatch.setattr(LOCAL, "size", failing_size)
    assert rollback.roll_back(done.chain())[1].generation == "2026-W41"


def test_a_killed_rollback_is_finished_by_the_next_one_without_going_back_twice(done: SmallChain) -> None:
    for name in ("2026-W41", "2026-W42", "2026-W43"):
        make(done, name)
    workspace, path = done.chain().workspace, pointer_of(done)
    newest, former = current(done).entry, current(done).before[0]
    served.serve(workspace, path)
    registry.withdraw(path, former)  # as far as the killed one got
    old, new = rollback.roll_back(done.chain())
    assert (old.generation, new.generation) == ("2026-W43", "2026-W42")
    assert read_json(served.folder(path) / "manifest.json")["generation"] == current(done).generation == "2026-W42"
    registry.set_current(path, newest)  # the same with --to
    with pytest.raises(PipelineError, match="already current"):
        rollback.roll_back(done.chain(), "2026-W43")
    assert read_json(served.folder(path) / "manifest.json")["generation"] == "2026-W43"


def test_after_a_step_to_a_refused_model_the_one_before_is_the_previous_one(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    make(done, "2026-W43", outcome="refused")
    rollback.roll_back(done.chain(), "2026-W43")
    assert current(done).rolled_back == []
    assert "2026-W42" not in [item.name for item in retention.expired(done.chain(), 1)]
    assert rollback.roll_back(done.chain())[1].generation == "2026-W42"
    assert [name.partition("@")[2] for name in current(done).rolled_back] == ["2026-W43"]


def test_a_lost_pointer_takes_no_model_away_and_is_replaced_by_hand(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    workspace, path = done.chain().workspace, pointer_of(done)
    served.serve(workspace, path)
    path.unlink()
    served.serve(workspace, path)
    assert read_json(served.folder(path) / "manifest.json")["generation"] == "2026-W42"
    with pytest.raises(PipelineError, match=r"nothing is current.*--to NAME chooses one"):
        rollback.roll_back(done.chain())
    tasks.Rollback(config=str(done.config), workspace=str(done.workspace), to="2026-W41").run()
    assert read_json(served.folder(path) / "manifest.json")["generation"] == current(done).generation == "2026-W41"


def test_without_the_current_models_run_nothing_is_trained_in_vain(done: SmallChain) -> None:
    make(done, "2026-W41")
    lost = make(done, "2026-W42")
    retraining = tasks.Retrain(config=str(done.config), workspace=str(done.workspace), generation="by-hand")
    assert not retraining.complete()
    about_the_pointer = [line for line in verify(done.chain().workspace).damaged if line.startswith("current/")]
    assert about_the_pointer == []
    shutil.rmtree(lost.root)
    problem = f"{lost.place}/train is missing or unfinished; restore it, roll back to an earlier one"
    with pytest.raises(WorkspaceError, match=f"no new generation can be compared with the current model: {problem}"):
        retraining.complete()
    assert any(line.startswith(f"current/mini/tiny.json: {problem}") for line in verify(done.chain().workspace).damaged)
    facts = status.gather(done.chain())
    assert facts["current"]["run"] == lost.place
    assert f"the current model is unusable: {problem}" in "\n".join(status.lines(facts, "run.yaml"))
    rollback.roll_back(done.chain())
    assert not retraining.complete()
    assert status.gather(done.chain())["current_problem"] is None


def test_a_model_that_was_rolled_back_is_called_so(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    rollback.roll_back(done.chain())
    text = "\n".join(status.lines(status.gather(done.chain()), "run.yaml"))
    assert "2026-W42 (rolled back, " in text
    assert "2026-W41 (promoted, current, " in text
    names = {item["name"]: item["rolled_back"] for item in status.gather(done.chain())["generations"]}
    assert (names["2026-W42"], names["2026-W41"]) == (True, False)


def test_generations_of_one_name_on_several_data_sets_are_named_by_their_path(
    done: SmallChain,
) -> None:
    run = make(done, "2026-W41")
    other = run.root.parent.with_name("mini-00000000") / run.root.name
    shutil.copytree(run.root, other)
    make(done, "2026-W42")
    places = [run.place, f"runs/mini-00000000/{run.root.name}"]
    with pytest.raises(PipelineError, match="--to 2026-W41: several have this name; use one of ") as refused:
        rollback.roll_back(done.chain(), "2026-W41")
    assert all(place in str(refused.value) for place in places)
    text = "\n".join(status.lines(status.gather(done.chain()), "run.yaml"))
    assert all(f"{place} (promoted" in text for place in places)
    assert rollback.roll_back(done.chain(), run.place)[1].run == run.place


def test_only_a_rolled_back_model_is_said_not_to_be_promoted_again(
    done: SmallChain, capsys: pytest.CaptureFixture[str]
) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    for to, warned in (("2026-W41", True), ("2026-W42", False)):
        tasks.Rollback(config=str(done.config), workspace=str(done.workspace), to=to).run()
        assert ("will not be promoted again automatically" in capsys.readouterr().out) == warned


def test_a_current_model_can_be_retired_and_restored(done: SmallChain) -> None:
    make(done, "2026-W41")
    renamed = pointer_of(done).with_name("renamed.json")
    registry.set_current(renamed, msgspec.structs.replace(current(done).entry, since="2026"))
    with pytest.raises(PipelineError, match=r"several models are current.*Retire --name mini/renamed"):
        predict.resolve_model(done.workspace)
    workspace = done.chain().workspace
    with pytest.raises(PipelineError, match=r"--name mini/x: no model.*known: mini/renamed, mini/tiny"):
        rollback.retire(workspace, "mini/x")
    rollback.retire(workspace, "mini/tiny")
    assert [path.name for path in workspace.currents()] == ["renamed.json"]
    assert done.folder("train", "2026-W41").is_dir()
    (entry,) = trash.items(workspace)
    assert entry.is_named("current/mini/tiny.json")
    trash.restore(workspace, entry)
    assert len(workspace.currents()) == 2


def test_a_change_that_fails_leaves_the_pointer_and_can_be_repeated(
    done: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    for week in (1, 2, 3):
        make(done, f"2026-W4{week}")
    workspace, path = done.chain().workspace, pointer_of(done)
    served.serve(workspace, path)
    before, model = path.read_bytes(), (path.with_suffix("") / "model.onnx").read_text()

    def full(*about: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("symlink", "replace"):  # the model cannot be served, and the pointer cannot be written
        with monkeypatch.context() as disk:
            disk.setattr(os, name, full)
            with pytest.raises(WorkspaceError, match="the disk is full"):
                rollback.roll_back(done.chain())
        assert path.read_bytes() == before
        assert (path.with_suffix("") / "model.onnx").read_text() == model
    rollback.roll_back(done.chain())
    assert current(done).generation == "2026-W42"
    before = path.read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(shutil, "rmtree", full)
        with pytest.raises(WorkspaceError, match="the disk is full"):
            rollback.retire(workspace, "mini/tiny")
    assert path.read_bytes() == before
    rollback.retire(workspace, "mini/tiny")
    assert not path.exists()


def test_a_rollback_that_waited_for_a_promotion_does_not_undo_it(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    workspace, path = done.chain().workspace, pointer_of(done)
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        with registry.held(workspace, path):
            rolling = other.submit(rollback.roll_back, done.chain())
            time.sleep(0.3)
            pointer = current(done)
            registry.set_current(path, msgspec.structs.replace(pointer.before[0], run=f"{pointer.run}-new"))
        with pytest.raises(PipelineError, match=r"-new has become current in the meantime; run Rollback again"):
            rolling.result()
    assert current(done).run.endswith("-new")


def test_a_rollback_to_the_current_model_is_refused_unless_it_was_trained_further(done: SmallChain) -> None:
    run = make(done, "2026-W41")
    before = pointer_of(done).read_bytes()
    with pytest.raises(PipelineError, match="--to 2026-W41: already current"):
        rollback.roll_back(done.chain(), "2026-W41")
    assert pointer_of(done).read_bytes() == before
    retrain(run, "further")
    _, new = rollback.roll_back(done.chain(), "2026-W41")
    assert current(done).entry == new
    assert current(done).rolled_back == []


def test_a_rollback_to_an_unevaluated_generation_is_refused(done: SmallChain) -> None:
    for week in ("2026-W41", "2026-W42"):
        make(done, week)
    shutil.rmtree(done.folder("evaluate", "2026-W41"))
    with pytest.raises(PipelineError, match="@2026-W41 is not evaluated; choose another one"):
        rollback.roll_back(done.chain(), "2026-W41")


def test_a_pipe_in_place_of_the_pointer_is_refused(done: SmallChain) -> None:
    path = pointer_of(done)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    for call in (lambda: registry.read(path), lambda: rollback.roll_back(done.chain())):
        with pytest.raises(WorkspaceError, match="a pipe or a folder, not a regular file: remove it"):
            call()
