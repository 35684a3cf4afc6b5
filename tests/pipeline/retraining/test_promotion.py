"""The promotion gate's rule, and the registry that it updates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation_runs import current, expired, make, new_test_set, retrain, run_gate
from luigi_runs import CLASSES, SmallChain
from msgspec.structs import asdict

from pipeline import dataset
from pipeline.errors import WorkspaceError
from pipeline.evaluation.statistics import compare_paired
from pipeline.process import child
from pipeline.retraining import generations, promotion, registry, rollback
from pipeline.workspace import Run, Workspace


def _run(name: str = "2026-W48") -> Run:
    return Workspace(Path("/nowhere")).run("mini-00000000", f"tiny-00000000@{name}")


def _entry(name: str) -> registry.Entry:
    about = {"weights_sha256": "0" * 64, "architecture": "0" * 64, "accuracy": 0.5, "since": "2026"}
    return registry.Entry(run=_run(name).place, generation=name, **about)


def _current(name: str, *before: str, rolled_back: Sequence[str] = ()) -> registry.Pointer:
    former = [_entry(former_name) for former_name in before]
    return registry.Pointer(**asdict(_entry(name)), before=former, rolled_back=list(rolled_back))


def _compared(right: int, right_before: int, images: int = 1000) -> dict[str, Any]:
    now, before = np.arange(images) < right, np.arange(images) < right_before
    return {"run": "r", "on": "same", **compare_paired(now, before), "all": None, "notes": []}


@pytest.mark.parametrize(
    ("right", "outcome"), [(1000, "promoted"), (700, "promoted"), (695, "promoted"), (694, "refused"), (0, "refused")]
)
def test_the_tolerance_is_exact_to_the_image(right: int, outcome: str) -> None:
    decision = promotion.decide(_run(), None, right / 1000, _compared(right, 700), 0.005)
    assert decision["outcome"] == outcome
    assert "same 1,000 test images" in decision["reason"]


def test_the_first_generation_is_promoted_and_a_rolled_back_one_is_not() -> None:
    assert promotion.decide(_run(), None, 0.1, None, 0.0)["outcome"] == "promoted"
    pointer = _current("2026-W47", rolled_back=[_run().place])
    decision = promotion.decide(_run(), pointer, 1.0, _compared(1000, 700), 0.005)
    assert decision["outcome"] == "refused"
    assert "rolled back" in decision["reason"]


@pytest.mark.parametrize("pointer", [_current("2026-W48"), _current("by-hand", "2026-W48"), _current("2026-11-26")])
@pytest.mark.parametrize("name", ["1970-W01", "2026-10", "2026-W46"])
def test_a_generation_from_an_earlier_period_is_not_promoted(pointer: registry.Pointer, name: str) -> None:
    decision = promotion.decide(_run(name), pointer, 1.0, _compared(1000, 700), 0.005)
    assert decision["outcome"] == "refused"
    assert "from an earlier period than 2026-" in decision["reason"]
    assert f"Rollback --to {name}" in decision["reason"]


@pytest.mark.parametrize(
    ("name", "pointer"),
    [
        ("2026-W49", _current("2026-W48")),
        ("2026-W48", _current("2026-W48")),  # new images in the same week
        ("2026-11", _current("2026-11-26")),
        ("by-hand", _current("2026-W48")),
        ("2026-W48", _current("by-hand")),
    ],
)
def test_otherwise_accuracy_decides(name: str, pointer: registry.Pointer) -> None:
    assert promotion.decide(_run(name), pointer, 1.0, _compared(1000, 700), 0.005)["outcome"] == "promoted"


def test_the_interval_of_the_difference_has_its_nominal_coverage() -> None:
    random = np.random.RandomState(0)
    inside = 0
    for _ in range(400):
        before, now = random.random_sample(300) < 0.7, random.random_sample(300) < 0.72
        low, high = compare_paired(now, before)["interval"]
        inside += low <= 0.02 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_the_pointer_remembers_former_models(tmp_path: Path) -> None:
    path = tmp_path / "current" / "mini" / "tiny.json"
    assert registry.read(path) is None
    for name in ("a", "b", "c"):
        registry.set_current(path, _entry(name))
    pointer = registry.read(path)
    assert pointer is not None
    assert (pointer.generation, [entry.generation for entry in pointer.before]) == ("c", ["b", "a"])
    pointer = registry.withdraw(path, pointer.before[0])
    assert (pointer.generation, [entry.generation for entry in pointer.before]) == ("b", ["a"])
    assert pointer.rolled_back == [_entry("c").run]
    # Making it current again by hand lifts the ban.
    pointer = registry.withdraw(path, _entry("c"))
    assert pointer.rolled_back == [_entry("b").run]
    # The list stays short.
    for number in range(2 * registry.REMEMBERED):
        pointer = registry.set_current(path, _entry(str(number)))
    assert len(pointer.before) == registry.REMEMBERED


@pytest.mark.parametrize("content", [b"", b"{}", b'{"run": 3}', b"\xff\xfe", b"[" * 1000])
def test_a_damaged_pointer_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tiny.json"
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"tiny\.json: damaged"):
        registry.read(path)


# --- the run without a generation ---------------------------------------------------------------------------------


def test_the_run_without_a_generation_is_the_first_baseline_and_rollback_target(done: SmallChain) -> None:
    plain = done.run()
    retrain(make(done, "2026-W48", outcome=""), "a week later")
    decision = run_gate(done, "2026-W48")
    assert decision["outcome"] == "promoted"
    assert decision["compared"]["run"] == plain.place
    names = [item.name for item in generations.find(done.chain().workspace, done.chain().config)]
    assert names == ["2026-W48", plain.run_id]
    assert expired(done, keep=1) == [], "a run without a generation is never pruned"
    rollback.roll_back(done.chain())
    assert (current(done).run, current(done).generation) == (plain.place, "")
    rollback.roll_back(done.chain(), "2026-W48")
    rollback.roll_back(done.chain(), plain.run_id)
    assert current(done).generation == ""


def test_the_run_without_a_generation_is_the_baseline_even_if_images_or_widths_change(done: SmallChain) -> None:
    plain, test = done.run(), dataset.load(done.folder("dataset"))
    grown = np.concatenate([test.test_images, 255 - test.test_images[:30]])
    labels = np.concatenate([test.test_labels, test.test_labels[:30]])
    new_test_set(done, "2026-W48", (grown, labels, CLASSES), right=np.zeros(90, bool))
    decision = run_gate(done, "2026-W48")
    assert (decision["outcome"], decision["compared"]["run"]) == ("refused", plain.place)
    done.configure(architecture__dense=[4])
    entry = generations.plain_run(done.chain("2026-W48"))
    assert entry
    assert entry.run == plain.place


def test_a_current_model_without_a_generation_may_be_trained_further(done: SmallChain) -> None:
    plain = done.run()
    promotion.promote(done.chain(), child.Reporter())
    first = current(done)
    retrain(plain, "further")
    promotion.promote(done.chain(), child.Reporter())
    second = current(done)
    assert second.run == first.run == plain.place
    assert second.weights_sha256 != first.weights_sha256
    # The next generation is compared with its present weights, even if the gate has not seen them yet.
    retrain(plain, "and further")
    week = make(done, "2026-W48", outcome="")
    retrain(week, "a week later")
    promotion.promote(done.chain("2026-W48"), child.Reporter())
    assert current(done).run == week.place
    (before,) = current(done).before
    assert before.run == plain.place
    assert registry.problems(plain.workspace, before) == []
