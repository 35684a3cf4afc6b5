"""The comparison with the current model when the test set has changed: which images decide, and what notes say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from generation_runs import Data, new_test_set, run_gate
from luigi_runs import CLASSES, SmallChain

from pipeline import dataset
from pipeline.process import child
from pipeline.retraining import baseline, promotion
from pipeline.workspace import Run


def _grown(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    more = np.random.RandomState(5).randint(0, 256, (30, 3, 32, 32)).astype(np.uint8)
    return np.concatenate([images, more]), np.append(labels, labels[:30]), classes


def _shrunk(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    return images[20:], labels[20:], classes


def _corrected(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    return images, np.append((labels[:6] + 1) % 10, labels[6:]).astype(np.uint8), classes


def _replaced(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    return 255 - images, labels, classes


def _nearly_replaced(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    return np.concatenate([images[:5], 255 - images[5:]]), labels, classes


def _with_a_new_class(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    return np.concatenate([images, 255 - images[:10]]), np.append(labels, [10] * 10).astype(np.uint8), [*classes, "van"]


def _in_another_order(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    return images, (9 - labels).astype(np.uint8), classes[::-1]


def _of_something_else(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    return 255 - images, labels, [f"part {number}" for number in range(10)]


def _first(small: SmallChain) -> tuple[Run, np.ndarray]:
    """The current model: the run without a generation, and which of its test images it classifies correctly."""
    promotion.promote(small.chain(), child.Reporter())
    return small.run(), baseline.evaluated(small.run())[1]


def _change(small: SmallChain, change: Callable[..., Data]) -> Data:
    data = dataset.load(small.folder("dataset"))
    return change(np.array(data.test_images), np.array(data.test_labels), list(CLASSES))


def _decided(small: SmallChain, change: Callable[..., Data], right: np.ndarray | None = None) -> dict[str, Any]:
    new_test_set(small, "2026-W48", _change(small, change), right)
    return run_gate(small, "2026-W48")


@pytest.mark.parametrize(
    ("change", "on", "images", "on_all", "notes"),
    [
        (_grown, "shared", range(60), 90, []),
        (_shrunk, "same", range(20, 60), None, []),
        (_corrected, "shared", range(6, 60), 60, ["the label of 6 test images changed"]),
        (_in_another_order, "same", range(60), None, []),
        (_with_a_new_class, "shared", range(60), None, ["the classes changed (new: van)"]),
    ],
)
def test_the_images_in_both_test_sets_decide(
    done: SmallChain, change: Callable[..., Data], on: str, images: range, on_all: int | None, notes: list[str]
) -> None:
    _, right = _first(done)
    compared = _decided(done, change)["compared"]
    assert (compared["on"], compared["images"], compared["notes"]) == (on, len(images), notes)
    assert compared["accuracy"] == right[images].mean()
    assert (compared["gained"], compared["lost"]) == ((~right[images]).sum(), 0)
    assert (compared["all"] and compared["all"]["images"]) == on_all


def test_a_model_that_is_worse_on_the_shared_images_is_refused_even_if_better_on_all(
    done: SmallChain,
) -> None:
    plain, right = _first(done)
    worse = np.append(right & (np.cumsum(right) > 5), [True] * 30)
    decision = _decided(done, _grown, worse)
    compared = decision["compared"]
    assert (compared["gained"], compared["lost"]) == (0, 5)
    assert compared["all"]["difference"] > 0
    assert decision["outcome"] == "refused"
    assert (
        f" from the baseline {plain.place} ({right.mean():.2%}) on the 60 test images that are in both test sets ("
        in (decision["reason"])
    )
    assert f"; on all 90: {worse.mean():.2%}, +" in decision["reason"]


@pytest.mark.parametrize(("change", "shared"), [(_replaced, "no test image"), (_nearly_replaced, "only 5 test images")])
def test_if_hardly_any_test_image_is_shared_the_whole_new_test_set_decides(
    done: SmallChain, change: Callable[..., Data], shared: str
) -> None:
    _first(done)
    decision = _decided(done, change)
    assert (decision["outcome"], decision["compared"]["on"], decision["compared"]["all"]) == ("promoted", "all", None)
    assert "on all 60 test images of the new test set (95% " in decision["reason"]
    assert decision["reason"].endswith(f"; the two test sets have {shared} in common")


def test_the_reason_says_that_the_baselines_test_images_are_gone(done: SmallChain) -> None:
    plain, _ = _first(done)
    new_test_set(done, "2026-W48", _change(done, _grown))
    shutil.rmtree(plain.workspace.dataset(plain.dataset_id))
    decision = run_gate(done, "2026-W48")
    assert decision["compared"]["on"] == "all"
    assert "the baseline's test images are no longer available (" in decision["reason"]


def test_a_model_with_other_classes_and_images_is_not_promoted(done: SmallChain) -> None:
    _first(done)
    decision = _decided(done, _of_something_else)
    assert decision["outcome"] == "refused"
    changed = "; the classes changed (new: part 0, part 1, part 2, part 3, part 4, …; gone: airplane, "
    assert f"the two test sets have no test image in common{changed}" in decision["reason"]
    assert "`Rollback --to 2026-W48` makes it current by hand" in decision["reason"]
