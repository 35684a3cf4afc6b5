"""The evaluation stage: reads `train/` of a run and the test images, writes `evaluate/`.

Writes `metrics.json` (accuracy, loss, per-class precision, recall and F1, confusion matrix) and `predictions.npz`
(labels, predictions, probabilities). With `evaluation.tta` above 1, both describe the averaged predictions, and
`single_view_accuracy` is the accuracy without averaging. Run as `python -m pipeline.evaluation`.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dataset, runtime
from pipeline.arrays import read_npz
from pipeline.errors import PipelineError, WorkspaceError, from_os_error
from pipeline.evaluation import metrics, tta
from pipeline.evaluation.inference import TrainedNetwork
from pipeline.evaluation.metrics import softmax
from pipeline.files import write_atomically, write_json
from pipeline.process.reporter import Reporter
from pipeline.workspace import Run, manifest
from pipeline.workspace.freshness import Chain


def evaluate(chain: Chain, reporter: Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Evaluate the run on all test images and publish the result; returns the manifest.

    Raises `WeightsError` for altered weights.
    """
    run, train = trained_run(chain)
    trained_on = train["details"]["dataset"]
    data = dataset.load(run.workspace.dataset(run.dataset_id))
    inputs = chain.inputs("evaluate")
    devices = runtime.devices(chain.config.device)
    runtime.adapt_to_load(reporter.write)
    started = time.monotonic()
    network = TrainedNetwork.load(run, train, devices.contexts[0])
    outputs = network.logits(data.test_images, chain.config.evaluation.tta, reporter)
    logits, labels = tta.average(outputs), np.asarray(data.test_labels)
    result = {
        **metrics.compute(logits, labels, data.classes),
        "views": len(outputs),
        "single_view_accuracy": float((outputs[0].argmax(1) == labels).mean()),
    }
    seconds = time.monotonic() - started
    folder = run.stage("evaluate")
    try:
        # The stage is incomplete from here until the new manifest is written.
        (folder / manifest.MANIFEST).unlink(missing_ok=True)
        write_json(folder / "metrics.json", {**result, "run": run.run_id, "dataset": trained_on})
        write_atomically(folder / "predictions.npz", _predictions(logits, labels))
        details = {
            "run": run.run_id,
            **{key: result[key] for key in ("accuracy", "views", "loss", "images")},
            "seconds": round(seconds, 3),
            "device": devices.name,
            "versions": runtime.versions(),
            "label": trained_on["label"],
        }
        value = manifest.write(folder, "evaluate", ("metrics.json", "predictions.npz"), inputs, details)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "publish the evaluation") from error
    summary = f"test accuracy {result['accuracy']:.2%} on {result['images']:,} images ({trained_on['label']})"
    if len(outputs) > 1:
        summary += f", {tta.described(len(outputs))}; one view {result['single_view_accuracy']:.2%}"
    reporter.note(summary)
    return value


def trained_run(chain: Chain) -> tuple[Run, dict[str, Any]]:
    """Return the chain's run and the manifest of its training. Raises `PipelineError` when there is none."""
    run = chain.run()
    train = manifest.read(run.stage("train")) if run else None
    if run is None or train is None:
        raise PipelineError("there is no trained model yet: run the TrainVGG task first")
    return run, train


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a `predictions.npz`. Raises `WorkspaceError` when it is not one."""
    try:
        arrays = read_npz(path)
    except (ValueError, OSError) as error:
        raise WorkspaceError(f"{path}: cannot be read ({error}); delete evaluate/ and run it again") from error
    shapes = [arrays[name].shape[:1] for name in ("labels", "predictions", "probabilities") if name in arrays]
    if len(shapes) < 3 or len(set(shapes)) > 1:
        raise WorkspaceError(f"{path}: not the predictions of an evaluation; delete evaluate/ and run it again")
    return arrays


def _predictions(logits: np.ndarray, labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    predictions, labels = logits.argmax(1).astype(np.uint8), labels.astype(np.uint8)
    np.savez(buffer, labels=labels, predictions=predictions, probabilities=softmax(logits))
    return buffer.getvalue()
