"""Changing the current model by hand: rolling back, and retiring a model."""

from __future__ import annotations

import shutil

import msgspec
import pytest
from generation_runs import current, make, pointer_of
from luigi_runs import SmallChain

from pipeline import predict
from pipeline.errors import PipelineError
from pipeline.retraining import promotion, registry, rollback, trash


def test_a_roll_back_passes_over_the_very_same_weights_and_can_be_undone(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42", weights="same")
    make(done, "2026-W43", weights="same")
    old, new = rollback.roll_back(done.chain())
    assert (old.generation, new.generation) == ("2026-W43", "2026-W41")
    # Neither of the two comes back by itself.
    twin = done.chain("2026-W44").run()
    assert twin
    shutil.copytree(done.chain("2026-W42").folder("train"), twin.stage("train"))  # type: ignore[arg-type]
    pointer = registry.read(pointer_of(done))
    decision = promotion.decide(twin, pointer, 1.0, None, 0.0)
    assert decision["outcome"] == "refused"
    assert "the very same weights as " in decision["reason"]
    # Going forward again restores the way back as well.
    rollback.roll_back(done.chain(), "2026-W43")
    rollback.roll_back(done.chain())
    assert current(done) == "2026-W41"


def test_a_current_model_can_be_retired_and_comes_back(done: SmallChain) -> None:
    make(done, "2026-W41")
    pointer = registry.read(pointer_of(done))
    assert pointer
    renamed = pointer_of(done).with_name("renamed.json")
    registry.set_current(renamed, msgspec.structs.replace(pointer.entry, since="2026"))
    with pytest.raises(PipelineError, match=r"several models are current.*Retire --name mini/renamed"):
        predict.resolve_model(done.workspace)
    workspace = done.chain().workspace
    with pytest.raises(PipelineError, match=r"--name mini/x: no model.*there are: mini/renamed, mini/tiny"):
        rollback.retire(workspace, "mini/x")
    rollback.retire(workspace, "mini/tiny")
    assert [path.name for path in workspace.currents()] == ["renamed.json"]
    assert done.chain("2026-W41").folder("train").is_dir()  # type: ignore[union-attr]
    (entry,) = trash.items(workspace)
    assert entry.is_named("current/mini/tiny.json")
    trash.restore(workspace, entry)
    assert len(workspace.currents()) == 2
