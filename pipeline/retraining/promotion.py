"""The promotion gate: a generation becomes the current model unless it is worse than the baseline, the current model.

Compares both on the same test images, see `baseline`. Writes `promote/decision.json` and its manifest to the run, and
updates the registry. `parent.run_stage` runs it as `python -m pipeline.retraining.promotion`.
"""

from __future__ import annotations

from typing import Any

from pipeline import evaluation
from pipeline.errors import from_os_error
from pipeline.files import now, write_json
from pipeline.process import child
from pipeline.process.reporter import Reporter
from pipeline.retraining import baseline, generations, registry
from pipeline.retraining.generations import PROMOTED, REFUSED
from pipeline.retraining.registry import Entry, Pointer
from pipeline.workspace import MANIFEST, Run, events, manifest
from pipeline.workspace.freshness import Chain

SCHEMA = 1


def promote(chain: Chain, reporter: Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Decide whether to promote the chain's run, make it current if so, and publish the decision.

    Returns the manifest. Raises `PipelineError` if the run is not evaluated, or the baseline is gone or damaged.
    """
    run, _ = evaluation.trained_run(chain)
    inputs = chain.inputs("promote")
    labels, correct = baseline.evaluated(run)
    path = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, path, reporter.note):
        pointer = _adopted(chain, reporter)
        other = _baseline(pointer, run)
        compared = baseline.compare(chain, run, other, labels, correct, reporter) if other else None
        decision = decide(run, pointer, float(correct.mean()), compared, chain.config.retrain.tolerance)
        if decision["outcome"] == PROMOTED:
            entry = registry.entry_of(run)
            assert entry is not None
            if pointer is None or (pointer.run, pointer.weights_sha256) != (entry.run, entry.weights_sha256):
                registry.set_current(path, entry)
        value = _publish(run, decision, inputs)
    fields = {key: decision[key] for key in ("run", "generation", "accuracy", "reason")}
    before = compared["run"] if compared else None
    events.record(chain.workspace, decision["outcome"], **registry.event_fields(chain), **fields, before=before)
    reporter.note(generations.verdict(decision))
    return value


def decide(
    run: Run, pointer: Pointer | None, accuracy: float, compared: dict[str, Any] | None, tolerance: float
) -> dict[str, Any]:
    """Return the content of `decision.json`: the outcome, the reason in words, and the comparison with the baseline."""
    if objection := _objection(run, pointer, compared):
        reason = f"{objection}; `Rollback --to {run.generation or run.run_id}` makes it current by hand"
        outcome = REFUSED
    elif compared is None:
        outcome, reason = PROMOTED, generations.FIRST_MODEL
    else:
        # Count whole images, so that no rounding error of the difference decides.
        missing = round(-compared["difference"] * compared["images"])
        outcome = PROMOTED if missing <= tolerance * compared["images"] + 1e-6 else REFUSED
        reason = baseline.describe(compared, tolerance)
    about = {"schema": SCHEMA, "run": run.place, "generation": run.generation, "accuracy": accuracy}
    return {
        **about,
        "tolerance": tolerance,
        "compared": compared,
        "outcome": outcome,
        "reason": reason,
        "decided": now(),
    }


def _objection(run: Run, pointer: Pointer | None, compared: dict[str, Any] | None) -> str:
    """Return why a run is not promoted whatever its accuracy; empty if there is no objection."""
    if pointer is None:
        return ""
    if run.place in pointer.rolled_back:
        return "rolled back before"
    weights = manifest.digest(manifest.read(run.stage("train")), "model.params")
    for place in pointer.rolled_back:
        other = manifest.read(registry.run_at(run.workspace, place).stage("train"))
        if weights and weights in (pointer.rolled_back_weights.get(place), manifest.digest(other, "model.params")):
            return f"the very same weights as {place}, which was rolled back before"
    if newer := generations.superseded_by(run.generation, pointer, run.place):
        return f"from an earlier period than {newer.generation}, {newer.run}"
    if compared and not compared["images"]:
        return f"cannot be compared with the baseline {compared['run']}: {'; '.join(compared['notes'])}"
    return ""


def _adopted(chain: Chain, reporter: Reporter) -> Pointer | None:
    """Return the pointer, after making the run without a generation (if there is one) the first current model.

    If that run is current but was trained further, its new weights become current. The caller holds the pointer's lock.
    """
    path = chain.workspace.current(chain.config)
    pointer, entry = registry.read(path), generations.plain_run(chain)
    if entry is None or (pointer and (pointer.run != entry.run or pointer.weights_sha256 == entry.weights_sha256)):
        return pointer
    why = "was trained further since it became current" if pointer else "predates the first generation"
    reporter.note(f"{entry.run} {why}: its weights are now the current model")
    fields = {"run": entry.run, "generation": entry.generation, "accuracy": entry.accuracy}
    events.record(chain.workspace, "adopted", **registry.event_fields(chain), **fields)
    return registry.set_current(path, entry)


def _baseline(pointer: Pointer | None, run: Run) -> Entry | None:
    """Return the current model, or its predecessor if a gate promoted this run and was then killed."""
    if pointer is None or pointer.run != run.place:
        return pointer
    return pointer.before[0] if pointer.before else None


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
