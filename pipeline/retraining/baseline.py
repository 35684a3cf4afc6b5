"""Compare a new model with the baseline, the current model, on the same test images.

If the test set has changed there are two comparisons: on the images in both test sets, which decides, and on the whole
new test set. Images match if their pixels and class names match. So an image with a corrected label is not shared: it
would penalise the model that was trained on the old label.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dataset, evaluation, runtime
from pipeline.errors import PipelineError, WorkspaceError
from pipeline.evaluation import tta
from pipeline.evaluation.statistics import compare_paired
from pipeline.files import sha256_file
from pipeline.process.reporter import Reporter
from pipeline.retraining import registry
from pipeline.retraining.registry import Entry
from pipeline.text import counted
from pipeline.workspace import Run, manifest
from pipeline.workspace.freshness import Chain

#: A note lists at most this many class names.
_MAX_NAMES = 5


def compare(
    chain: Chain, run: Run, baseline: Entry, labels: np.ndarray, correct: np.ndarray, reporter: Reporter
) -> dict[str, Any]:
    """Compare a run with the baseline. `correct` says which of its test images, with these `labels`, it got right.

    Returns the result of `compare_paired` on the images that decide, which `on` names: the "same" test set, the images
    "shared" by both, "all" of the new ones if too few are shared, or "none" (and `images` is 0) if the classes changed
    as well. If the shared images decide, `all` is the comparison on the whole new test set.
    """
    other = registry.run_at(chain.workspace, baseline.run)
    if problems := registry.problems(chain.workspace, baseline):
        why = registry.with_remedy(chain.workspace.current(chain.config), problems)
        raise WorkspaceError(f"cannot compare with the current model: {why}")
    about = {"run": baseline.run, "generation": baseline.generation, "accuracy_when_promoted": baseline.accuracy}
    all_rows, correct_before = np.arange(len(labels)), None
    if _test_set(run) == _test_set(other):
        shared, notes = all_rows, list[str]()
        correct_before = _saved_correct(other, labels, chain.config.evaluation.tta)
    else:
        shared, notes = _shared(run, other)
    changed = _changed_classes(_classes(other), _classes(run))
    notes += changed
    comparable = shared if changed else all_rows  # classes that the baseline does not know would penalise it
    if not len(comparable):
        return {**about, "on": "none", "images": 0, "all": None, "notes": notes}
    if correct_before is None:
        correct_before = np.zeros(len(labels), bool)
        correct_before[comparable] = _evaluate(chain, run, other, comparable, reporter)
    on = "all" if not len(shared) else "shared" if len(shared) < len(labels) else "same"
    decisive = shared if len(shared) else all_rows
    return {
        **about,
        "on": on,
        **compare_paired(correct[decisive], correct_before[decisive]),
        "all": compare_paired(correct, correct_before) if on == "shared" and not changed else None,
        "notes": notes,
    }


def describe(compared: dict[str, Any], tolerance: float) -> str:
    """Describe a comparison in one line, as the reason for the gate's decision."""
    low, high = compared["interval"]
    parts = [
        f"accuracy {compared['accuracy'] + compared['difference']:.2%}, {compared['difference'] * 100:+.2f} points "
        f"from the baseline {compared['run']} ({compared['accuracy']:.2%}) on {describe_images(compared)} "
        f"(95% interval {low * 100:+.2f} to {high * 100:+.2f}, p = {compared['p']:.2g}; tolerance "
        f"{tolerance * 100:g} points)"
    ]
    if overall := compared["all"]:
        after = overall["accuracy"] + overall["difference"]
        parts.append(f"on all {overall['images']:,}: {after:.2%}, {overall['difference'] * 100:+.2f} points")
    return "; ".join([*parts, *compared["notes"]])


def describe_images(compared: dict[str, Any]) -> str:
    """Say which images two models were compared on. Older decisions have no `on`."""
    phrases = {"shared": "the {} that are in both test sets", "all": "all {} of the new test set"}
    count = counted(compared["images"], "test image")
    return phrases.get(compared.get("on", ""), "the same {}").format(count)


def evaluated(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the test images, (n,), and which ones the run classified correctly, (n,) booleans."""
    folder = run.stage("evaluate")
    recorded = manifest.read(folder)
    if recorded is None:
        raise PipelineError("the generation is not evaluated yet: run the Evaluate task first")
    return _read_predictions(manifest.verified(folder, recorded, "predictions.npz"))


# --- shared test images -------------------------------------------------------------------------------------------


def _classes(run: Run) -> list[str]:
    train = manifest.read(run.stage("train"))
    assert train is not None
    return train["details"]["dataset"]["classes"]


def _test_set(run: Run) -> list[Any]:
    """Identify the test set of a run by its digests and classes, or by the data set's name if that is gone."""
    recorded = manifest.read(run.workspace.dataset(run.dataset_id))
    if recorded is None:
        return [run.dataset_id]
    return [*(manifest.digest(recorded, name) for name in dataset.TEST_FILES), _classes(run)]


def _shared(run: Run, other: Run) -> tuple[np.ndarray, list[str]]:
    """Return the indices of the run's test images that are also in the other run's test set, and notes on the rest.

    Returns no indices if less than a tenth of the smaller test set is shared: a few duplicates must not decide.
    """
    try:
        before = set(_identities(other))
    except WorkspaceError as error:
        return np.empty(0, int), [f"the baseline's test images are no longer available ({error})"]
    now, pixels_before = _identities(run), {pixels for pixels, _ in before}
    shared = [index for index, identity in enumerate(now) if identity in before]
    relabelled = sum(pixels in pixels_before for pixels, _ in now) - len(shared)
    notes = [f"the label of {counted(relabelled, 'test image')} changed"] if relabelled else []
    if 10 * len(shared) < min(len(now), len(before)):
        count = f"only {counted(len(shared), 'test image')}" if shared else "no test image"
        return np.empty(0, int), [f"the two test sets have {count} in common", *notes]
    return np.array(shared, int), notes


def _identities(run: Run) -> list[tuple[bytes, str]]:
    """Identify each test image of a run's data set: the digest of its pixels, and the name of its class."""
    images, labels, classes = dataset.load_test(run.workspace.dataset(run.dataset_id))
    return [(hashlib.sha256(image).digest(), classes[label]) for image, label in zip(images, labels, strict=True)]


def _changed_classes(before: list[str], now: list[str]) -> list[str]:
    """Return a note on how two lists of classes differ; no note if only their order does."""
    sides = (("new", sorted(set(now) - set(before))), ("gone", sorted(set(before) - set(now))))
    listed = {side: ", ".join(names[:_MAX_NAMES] + ["…"] * (len(names) > _MAX_NAMES)) for side, names in sides}
    parts = [f"{side}: {names}" for side, names in listed.items() if names]
    return [f"the classes changed ({'; '.join(parts)})"] if parts else []


# --- predictions of the baseline ----------------------------------------------------------------------------------


def _saved_correct(run: Run, labels: np.ndarray, views: int) -> np.ndarray | None:
    """Read from the saved predictions which test images the run classified correctly, (n,) booleans.

    Returns None if they are gone, or were made with other weights, images or views.
    """
    path = run.stage("evaluate") / "predictions.npz"
    recorded, train = manifest.read(run.stage("evaluate")), manifest.read(run.stage("train"))
    if recorded is None or recorded["inputs"].get("model.params") != manifest.digest(train, "model.params"):
        return None
    if manifest.recorded_inputs(recorded)[manifest.TTA] != str(views):
        return None
    if not path.is_file() or sha256_file(path) != manifest.digest(recorded, path.name):
        return None
    saved_labels, correct = _read_predictions(path)
    return correct if np.array_equal(saved_labels, labels) else None


def _evaluate(chain: Chain, run: Run, other: Run, rows: Any, reporter: Reporter) -> np.ndarray:
    """Return which test images `rows` of `run` the other run's weights get right. Classes match by name, not index."""
    reporter.note(f"evaluating the current model, {other.place}, on the same images and views as the new one")
    train = manifest.read(other.stage("train"))
    assert train is not None
    devices = runtime.devices(chain.config.device)
    runtime.adapt_to_load(reporter.write)
    network = evaluation.TrainedNetwork.load(other, train, devices.contexts[0])
    data = dataset.load(run.workspace.dataset(run.dataset_id))
    logits = tta.average(network.logits(data.test_images[rows], chain.config.evaluation.tta, reporter))
    names = np.array(evaluation.metrics.output_names(_classes(other), logits.shape[1]))
    return names[logits.argmax(1)] == np.array(data.classes)[data.test_labels[rows]]


def _read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = evaluation.read_predictions(path)
    return arrays["labels"], arrays["predictions"] == arrays["labels"]
