"""Evaluation on the test images: `train/` of a run in, `evaluate/` out.

Leaves `metrics.json` (accuracy, loss, per-class precision, recall and F1, confusion matrix) and `predictions.npz`
(labels, predictions, probabilities). Always in float32, so that CPU and GPU agree. With `evaluation.tta` above 1 all
of them are about the averaged predictions, and `single_view_accuracy` is the accuracy without. Run as `python -m
pipeline.evaluation` by `launch.run_stage`.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dataset, model, runtime
from pipeline.arrays import read_npz
from pipeline.config import Architecture, from_record
from pipeline.dataset import loader
from pipeline.dataset.normalisation import Normalisation
from pipeline.errors import PipelineError, WorkspaceError, from_os_error
from pipeline.evaluation import tta
from pipeline.files import write_atomically, write_json
from pipeline.model import weights
from pipeline.process import child
from pipeline.training.loss import cross_entropy
from pipeline.workspace import Run, manifest
from pipeline.workspace.freshness import Chain

BATCH_SIZE = 250


def evaluate(chain: Chain, reporter: child.Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Evaluate the run's weights on all test images and publish the result; gives the manifest.

    Raises `WeightsError` when the weights do not have the digest that the training recorded.
    """
    run, train = trained_run(chain)
    data = dataset.load(run.workspace.dataset(run.dataset_id))
    inputs = chain.inputs("evaluate")
    devices = runtime.devices(chain.config.device)
    runtime.adapt_to_load(reporter.write)
    started = time.monotonic()
    net = load_network(run, train, devices.contexts[:1])
    norm = Normalisation.from_manifest(train["details"])
    outputs = view_logits(net, data.test_images, norm, devices.contexts[0], chain.config.evaluation.tta, reporter)
    logits, labels = tta.average(outputs), np.asarray(data.test_labels)
    result = {
        **metrics(logits, labels, data.classes),
        "views": len(outputs),
        "single_view_accuracy": float((outputs[0].argmax(1) == labels).mean()),
    }
    seconds = time.monotonic() - started
    folder = run.stage("evaluate")
    try:
        write_json(folder / "metrics.json", {**result, "run": run.run_id, "dataset": train["details"]["dataset"]})
        write_atomically(folder / "predictions.npz", _predictions(logits, labels))
        details = {
            "run": run.run_id,
            "accuracy": result["accuracy"],
            "views": result["views"],
            "loss": result["loss"],
            "images": result["images"],
            "seconds": round(seconds, 3),
            "device": devices.name,
            "versions": runtime.versions(),
            "label": train["details"]["dataset"]["label"],
        }
        value = manifest.write(folder, "evaluate", ("metrics.json", "predictions.npz"), inputs, details)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "publish the evaluation") from error
    label = train["details"]["dataset"]["label"]
    told = f"test accuracy {result['accuracy']:.2%} on {result['images']:,} images ({label})"
    if len(outputs) > 1:
        told += f", {tta.described(len(outputs))}; one view {result['single_view_accuracy']:.2%}"
    reporter.note(told)
    return value


def trained_run(chain: Chain) -> tuple[Run, dict[str, Any]]:
    """The chain's run and the manifest of its training; raises `PipelineError` when there is none."""
    run = chain.run()
    train = manifest.read(run.stage("train")) if run else None
    if run is None or train is None:
        raise PipelineError("there is no trained model yet: run the TrainVGG task first")
    return run, train


def load_network(run: Run, train: dict[str, Any], contexts: list[Any]) -> Any:
    """The trained network, hybridised, its weights checked against the recorded digest."""
    architecture: Architecture = from_record(train["details"]["config"]).architecture
    net = model.build(architecture)
    path = run.stage("train") / "model.params"
    weights.load_trusted(net, path, train["files"]["model.params"]["sha256"], contexts)
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def predict_logits(
    net: Any,
    images: np.ndarray,
    norm: Normalisation,
    context: Any,
    count: int = 1,
    reporter: child.Reporter | None = None,
) -> np.ndarray:
    """(n, classes) float32 logits of (n, 3, 32, 32) uint8 images, averaged over the first `count` views."""
    return tta.average(view_logits(net, images, norm, context, count, reporter))


def view_logits(
    net: Any,
    images: np.ndarray,
    norm: Normalisation,
    context: Any,
    count: int,
    reporter: child.Reporter | None = None,
) -> list[np.ndarray]:
    """For each of the first `count` views, the (n, classes) float32 logits of (n, 3, 32, 32) uint8 images."""
    mx = runtime.mxnet()
    batch_size = min(BATCH_SIZE, len(images))
    parts: list[list[np.ndarray]] = [[] for _ in range(count)]
    waiting: tuple[int, Any, int] | None = None
    for start in range(0, len(images), batch_size):
        for view, pixels in enumerate(tta.views(images[start : start + batch_size], count)):
            ((values, size),) = loader.padded_batches(pixels, batch_size, norm)
            output = net(mx.nd.array(values, ctx=context))
            if waiting is not None:  # the previous batch, while this one computes
                parts[waiting[0]].append(waiting[1].asnumpy()[: waiting[2]])
            waiting = (view, output, size)
        if reporter:
            done = min(start + batch_size, len(images))
            reporter.progress(done / len(images), f"{done:,} of {len(images):,} images")
    assert waiting is not None
    parts[waiting[0]].append(waiting[1].asnumpy()[: waiting[2]])
    return [np.concatenate(part) for part in parts]


def metrics(logits: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Everything that `metrics.json` says about (n, outputs) logits and (n,) labels.

    `confusion[i][j]` counts images of class i that were taken for class j. A class that was never predicted has
    precision None; F1 is then 0. A network can have more outputs than there are classes: those that were predicted,
    and those before them, are classes without images.
    """
    loss, correct = cross_entropy(logits, labels)
    predictions = logits.argmax(1)
    classes = output_names(classes, max(len(classes), int(predictions.max()) + 1))
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels.astype(int), predictions), 1)
    per_class = []
    for index, name in enumerate(classes):
        hits, support, predicted = (
            int(confusion[index, index]),
            int(confusion[index].sum()),
            int(confusion[:, index].sum()),
        )
        per_class.append(
            {
                "class": name,
                "precision": hits / predicted if predicted else None,
                "recall": hits / support if support else None,
                "f1": 2 * hits / (support + predicted) if support + predicted else 0.0,
                "support": support,
                "predicted": predicted,
            }
        )
    return {
        "accuracy": float(correct.mean()),
        "loss": float(loss.mean()),
        "images": len(labels),
        "classes": classes,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def output_names(classes: list[str], outputs: int) -> list[str]:
    """A name for each output of a network that may have more of them than its data set has classes."""
    return [*classes, *(f"unnamed class {number}" for number in range(len(classes), outputs))]


def softmax(logits: np.ndarray) -> np.ndarray:
    """(n, classes) float32 probabilities of (n, classes) logits."""
    values = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return (values / values.sum(1, keepdims=True)).astype(np.float32)


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `predictions.npz`; raises `WorkspaceError` when it is not one."""
    try:
        found = read_npz(path)
    except (ValueError, OSError) as error:
        raise WorkspaceError(f"{path}: cannot be read ({error}); delete evaluate/ and run it again") from error
    shapes = [found[name].shape[:1] for name in ("labels", "predictions", "probabilities") if name in found]
    if len(shapes) < 3 or len(set(shapes)) > 1:
        raise WorkspaceError(f"{path}: no predictions of an evaluation; delete evaluate/ and run it again")
    return found


def _predictions(logits: np.ndarray, labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        labels=labels.astype(np.uint8),
        predictions=logits.argmax(1).astype(np.uint8),
        probabilities=softmax(logits),
    )
    return buffer.getvalue()
