"""The promotion gate: a generation becomes the current model unless it is worse than the baseline, the current one.

Reads the predictions of both on the same test images (and computes the baseline's when the images have changed).
Writes `promote/decision.json` and its manifest in the run, and updates the registry when the generation is promoted.
Run as `python -m pipeline.retraining.promotion` by `parent.run_stage`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipeline import dataset, evaluation, runtime
from pipeline.dataset.normalisation import Normalisation
from pipeline.errors import PipelineError, WorkspaceError, from_os_error
from pipeline.evaluation.statistics import compare_paired
from pipeline.files import now, sha256_file, write_json
from pipeline.process import child
from pipeline.retraining import generations, periods, registry
from pipeline.retraining.generations import PROMOTED, REFUSED
from pipeline.retraining.registry import Entry, Pointer
from pipeline.workspace import MANIFEST, Run, events, manifest
from pipeline.workspace.freshness import Chain

SCHEMA = 1


def promote(chain: Chain, reporter: child.Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Decide about the chain's run, make it current if it is promoted, publish the decision; gives the manifest.

    Raises `PipelineError` when the run is not evaluated, or the files of the baseline are gone or damaged.
    """
    started = time.monotonic()
    run, _ = evaluation.trained_run(chain)
    inputs = chain.inputs("promote")
    labels, correct = _evaluated_run(run)
    path = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, path):
        pointer = _adopted(chain, reporter)
        baseline = _baseline(pointer, run)
        compared = _compare(chain, run, baseline, labels, correct, reporter) if baseline else None
        decision = decide(run, pointer, float(correct.mean()), compared, chain.config.retrain.tolerance)
        decision["generation"] = chain.generation
        if decision["outcome"] == PROMOTED:
            entry = registry.entry_of(run, chain.generation)
            assert entry is not None
            if pointer is None or (pointer.run, pointer.weights_sha256) != (entry.run, entry.weights_sha256):
                registry.set_current(path, entry)
        value = _publish(run, decision, inputs)
    seconds = round(time.monotonic() - started, 3)
    told = {key: decision[key] for key in ("run", "generation", "accuracy", "reason")}
    before = compared["run"] if compared else None
    events.record(chain.workspace, decision["outcome"], **registry.about(chain), **told, before=before, seconds=seconds)
    reporter.note(generations.verdict(decision))
    return value


def decide(
    run: Run, pointer: Pointer | None, accuracy: float, compared: dict[str, Any] | None, tolerance: float
) -> dict[str, Any]:
    """The decision as it is published: the outcome, the reason for people, and the comparison with the baseline."""
    common = {"schema": SCHEMA, "run": run.place, "accuracy": accuracy, "tolerance": tolerance, "compared": compared}
    if pointer is not None and (objection := _objection(run, pointer)):
        reason = f"{objection}; `Rollback --to {run.generation or run.run_id}` makes it current by hand"
        return {**common, "outcome": REFUSED, "reason": reason, "decided": now()}
    if compared is None:
        return {**common, "outcome": PROMOTED, "reason": generations.FIRST_MODEL, "decided": now()}
    # Whole images: a rounding error of the difference must not decide.
    missing = round(-compared["difference"] * compared["images"])
    outcome = PROMOTED if missing <= tolerance * compared["images"] + 1e-6 else REFUSED
    low, high = compared["interval"]
    reason = (
        f"accuracy {accuracy:.2%}, {compared['difference'] * 100:+.2f} points from the baseline {compared['run']} "
        f"({compared['accuracy']:.2%}) on the same {compared['images']:,} test images "
        f"(95% interval {low * 100:+.2f} to {high * 100:+.2f}, p = {compared['p']:.2g}; tolerance "
        f"{tolerance * 100:g} points)"
    )
    return {**common, "outcome": outcome, "reason": reason, "decided": now()}


def _objection(run: Run, pointer: Pointer) -> str:
    """Why a run is not promoted however good it is; empty when nothing is against it."""
    if run.place in pointer.rolled_back:
        return "rolled back before"
    weights = manifest.digest(manifest.read(run.stage("train")), "model.params")
    for place in pointer.rolled_back:
        other = manifest.read(registry.run_at(run.workspace, place).stage("train"))
        if weights and manifest.digest(other, "model.params") == weights:
            return f"the very same weights as {place}, which was rolled back before"
    others = (entry for entry in (pointer.entry, *pointer.before) if entry.run != run.place)
    newest = next((entry for entry in others if periods.period(entry.generation)), None)
    if newest and periods.is_older(run.generation, newest.generation):
        return f"from an earlier period than {newest.generation}, {newest.run}"
    return ""


def _adopted(chain: Chain, reporter: child.Reporter) -> Pointer | None:
    """The pointer, in which the run without a generation (if there is one) counts as the first current model.

    When it was trained further since, its present weights count. The caller holds the pointer's lock.
    """
    path = chain.workspace.current(chain.config)
    pointer, entry = registry.read(path), generations.plain_run(chain)
    if entry is None or (pointer and (pointer.run, pointer.weights_sha256) == (entry.run, entry.weights_sha256)):
        return pointer
    if pointer and pointer.run != entry.run:
        return pointer
    since = "was trained further since it became current" if pointer else "exists since before the first generation"
    reporter.note(f"{entry.run} {since}: its present weights are the current model")
    told = {"run": entry.run, "generation": entry.generation, "accuracy": entry.accuracy}
    events.record(chain.workspace, "adopted", **registry.about(chain), **told)
    return registry.set_current(path, entry)


def _baseline(pointer: Pointer | None, run: Run) -> Entry | None:
    """The current model, or the one before it when a gate that was killed had already promoted this run."""
    if pointer is None or pointer.run != run.place:
        return pointer
    return pointer.before[0] if pointer.before else None


def _compare(
    chain: Chain, run: Run, baseline: Entry, labels: np.ndarray, correct: np.ndarray, reporter: child.Reporter
) -> dict[str, Any]:
    other = registry.run_at(chain.workspace, baseline.run)
    problems = registry.problems(chain.workspace, baseline)
    if problems:
        raise WorkspaceError(
            f"cannot compare with the current model: {'; '.join(problems)}; restore it, go back to an earlier one "
            f"(luigi --module tasks Rollback), or delete {chain.workspace.current(chain.config)} to start afresh"
        )
    same = _test_images(chain, run) == _test_images(chain, other)
    before = _saved(other, labels, chain.config.evaluation.tta) if same else None
    if before is None:
        reporter.note(f"evaluating the current model, {baseline.run}, on the same images and views as the new one")
        before = _evaluate(chain, run, other, labels, reporter)
    return {
        "run": baseline.run,
        "generation": baseline.generation,
        "accuracy": float(before.mean()),
        "accuracy_when_promoted": baseline.accuracy,
        "same_images": same,
        "images": len(labels),
        "difference": float(correct.mean() - before.mean()),
        **compare_paired(correct, before),
    }


def _evaluated_run(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The labels (n,) of the test images, and which of them the run classified correctly, (n,) booleans."""
    folder = run.stage("evaluate")
    recorded = manifest.read(folder)
    if recorded is None:
        raise PipelineError("the generation is not evaluated yet: run the Evaluate task first")
    return _read_predictions(manifest.verified(folder, recorded, "predictions.npz"))


def _saved(run: Run, labels: np.ndarray, views: int) -> np.ndarray | None:
    """Which test images the run classified correctly, (n,) booleans, by its saved predictions.

    None when they are gone, or of other weights, images or views.
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


def _evaluate(chain: Chain, run: Run, other: Run, labels: np.ndarray, reporter: child.Reporter) -> np.ndarray:
    """Which of the present test images the other run's weights classify correctly."""
    train = manifest.read(other.stage("train"))
    assert train is not None
    devices = runtime.devices(chain.config.device)
    runtime.adapt_to_load(reporter.write)
    net = evaluation.load_network(other, train, devices.contexts[:1])
    norm = Normalisation.from_manifest(train["details"])
    images = dataset.load(chain.workspace.dataset(run.dataset_id)).test_images
    views = chain.config.evaluation.tta
    return evaluation.predict_logits(net, images, norm, devices.contexts[0], views, reporter).argmax(1) == labels


def _read_predictions(path: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = evaluation.read_predictions(path)
    return arrays["labels"], arrays["predictions"] == arrays["labels"]


def _test_images(chain: Chain, run: Run) -> list[str | None]:
    """Digests of the test images and labels of a run's data set; of one that is gone, its name."""
    recorded = manifest.read(chain.workspace.dataset(run.dataset_id))
    if recorded is None:
        return [run.dataset_id]
    return [manifest.digest(recorded, name) for name in ("test_images.npy", "test_labels.npy")]


def _publish(run: Run, decision: dict[str, Any], inputs: dict[str, str | None]) -> dict[str, Any]:
    folder = run.stage("promote")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        write_json(folder / "decision.json", decision)
        details = {"run": run.run_id, "outcome": decision["outcome"]}
        return manifest.write(folder, "promote", ("decision.json",), inputs, details)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "publish the decision") from error


if __name__ == "__main__":
    child.exit_with(child.main(promote))
