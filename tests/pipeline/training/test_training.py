"""Resuming a training: nothing intact is lost, and nothing damaged is trusted."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from luigi_runs import SmallChain

from pipeline import training
from pipeline.errors import Interrupted
from pipeline.process import child
from pipeline.workspace import manifest


def stop_after_a_step(chain: SmallChain) -> str:
    """Train one step; returns the log."""
    reporter = child.Reporter(log=io.StringIO(), commands={"stop"})
    with pytest.raises(Interrupted):
        training.train(chain.chain(), reporter)
    return reporter.log.getvalue()


def train(chain: SmallChain) -> tuple[dict[str, Any], str]:
    """Train to the end; returns the manifest's details and the log."""
    events, log = io.StringIO(), io.StringIO()
    details = training.train(chain.chain(), child.Reporter(events, log))["details"]
    assert events.getvalue().count('{"event": "finishing"}') == 1
    return details, log.getvalue()


def checkpoints(chain: SmallChain) -> list[Path]:
    return sorted(chain.workspace.glob("work/*/*/checkpoints/*.npz"))


def change(path: Path, how: Callable[[dict[str, np.ndarray], dict[str, Any]], Any]) -> None:
    """Rewrite a checkpoint with changed content and valid checksums."""
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    how(arrays, meta)
    np.savez(path, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)


def test_an_interrupted_retraining_of_a_damaged_run_resumes_from_its_checkpoint(done: SmallChain) -> None:
    (done.folder("train") / "model.params").unlink()
    stop_after_a_step(done)
    details, log = train(done)
    assert "resumed from step-000000001.npz" in log
    assert [segment["step"] for segment in details["segments"]] == [0, 1]


def test_fewer_validation_images_than_configured_are_reported(prepared: SmallChain) -> None:
    prepared.configure(training__validation_images=2500)
    expected = (
        "training.validation_images: holding out only 120 of the 240 training images: at most half may be held out"
    )
    assert expected in stop_after_a_step(prepared)


def test_a_restored_result_wins_over_an_older_checkpoint_if_it_is_intact(done: SmallChain) -> None:
    weights = done.folder("train") / "model.params"
    content = weights.read_bytes()
    weights.unlink()
    stop_after_a_step(done)
    done.configure(training__epochs=2)
    weights.write_bytes(bytes(len(content)))
    assert "resumed from step-000000001.npz" in stop_after_a_step(done)
    weights.write_bytes(content)
    details, log = train(done)
    assert "ignoring checkpoint step-000000002.npz: the finished training of 1 epoch is newer" in log
    assert details["segments"][-1]["how"] == "resumed from 1 epoch of train/model.params"


def test_a_damaged_trainer_state_costs_only_the_momentum(done: SmallChain) -> None:
    done.configure(training__epochs=2, training__learning_rate=0.04)
    before, _ = train(done)
    assert "training.learning_rate: trained with 0.05, config now says 0.04" in before["inexact"]
    os.truncate(done.folder("train") / "trainer.npz", 100)
    done.configure(training__epochs=3, training__momentum=0.8)
    after, log = train(done)
    assert "resuming from model.params with zero momentum" in log
    assert after["inexact"] == [
        *before["inexact"],
        "the momentum was lost when the run was resumed",
        "training.momentum: trained with 0.9, config now says 0.8",
    ]
    assert after["segments"][:-1] == before["segments"]
    assert (len(after["segments"]), after["resumed"]) == (3, 2)
    assert after["seconds"] > before["seconds"]
    assert after["input_seconds"] >= before["input_seconds"]


def test_changed_conditions_are_reported_even_without_momentum(done: SmallChain) -> None:
    path = done.folder("train")
    recorded = manifest.read(path)
    assert recorded is not None
    recorded["details"] |= {"threads": 77, "amx": True}
    manifest.write(path, "train", recorded["files"], recorded["inputs"], recorded["details"])
    (path / "trainer.npz").unlink()
    done.configure(training__epochs=2)
    details, _ = train(done)
    for expected in (r"resumed with \d+ threads? instead of 77", "resumed with no AMX instead of AMX"):
        assert any(re.match(expected, reason) for reason in details["inexact"])


def test_a_milestone_that_is_added_with_the_epochs_it_needs_is_exact(prepared: SmallChain) -> None:
    prepared.configure(training__epochs=2, training__schedule={"kind": "step", "milestones": [1]})
    train(prepared)
    prepared.configure(training__epochs=3, training__schedule={"kind": "step", "milestones": [1, 2]})
    assert train(prepared)[0]["exact"] is True
    prepared.configure(training__epochs=4, training__schedule={"kind": "step", "milestones": [2, 3]})
    assert any("schedule.milestones" in reason for reason in train(prepared)[0]["inexact"])


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(lambda arrays, meta: arrays.pop("parameter:0.0.weight"), id="an array is missing"),
        pytest.param(
            lambda arrays, meta: arrays.update({"parameter:0.0.weight": np.zeros((9, 3, 3, 3), np.float32)}),
            id="an array has another shape",
        ),
        pytest.param(
            lambda arrays, meta: arrays.update({"momentum:0.0.weight": np.full((4, 3, 3, 3), np.nan, np.float32)}),
            id="numbers are not finite",
        ),
        pytest.param(lambda arrays, meta: arrays.update(foreign=np.zeros(3)), id="an array of another kind"),
        pytest.param(lambda arrays, meta: arrays.update({"parameter:0.0.weight": np.array("x")}), id="text"),
        pytest.param(lambda arrays, meta: meta.pop("identity"), id="no identity"),
        pytest.param(lambda arrays, meta: meta.update(identity={}), id="an empty identity"),
        pytest.param(lambda arrays, meta: meta["counters"].update(segments=[{}]), id="an empty segment"),
        pytest.param(lambda arrays, meta: meta["counters"].update(step="many"), id="text for a number"),
        pytest.param(lambda arrays, meta: meta["counters"].update(step_in_epoch=99), id="past the epoch"),
        pytest.param(lambda arrays, meta: meta["counters"].update(epoch=1), id="an epoch without its history"),
        pytest.param(lambda arrays, meta: meta["counters"].update(history=[{"epoch": 1}], epoch=1), id="half a row"),
        pytest.param(lambda arrays, meta: meta["counters"].update(sums=[[1.0]]), id="half a sum"),
        pytest.param(lambda arrays, meta: meta.update(schema="one"), id="no schema"),
    ],
)
def test_a_checkpoint_with_valid_checksums_and_wrong_content_is_quarantined(
    prepared: SmallChain, how: Callable[[dict[str, np.ndarray], dict[str, Any]], Any]
) -> None:
    stop_after_a_step(prepared)
    stop_after_a_step(prepared)
    _, newest = checkpoints(prepared)
    change(newest, how)
    log = stop_after_a_step(prepared)
    assert f"{newest}: damaged checkpoint (" in log
    assert "resumed from step-000000001.npz" in log
    assert (newest.parent / f"damaged-{newest.name}").exists()
