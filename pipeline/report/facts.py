"""The facts of a report as plain JSON, read from the data set and the manifests and files of a run. Writes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import msgspec
import numpy as np

from pipeline import config as configuration
from pipeline import dataset, model, pages
from pipeline.config import Architecture, Augmentation, Config, Training
from pipeline.config.difference import flatten
from pipeline.errors import PipelineError
from pipeline.evaluation import read_predictions, statistics, tta
from pipeline.evaluation.metrics import output_names
from pipeline.files import now, read_json
from pipeline.pages import PUBLISHED_ACCURACY
from pipeline.retraining import baseline
from pipeline.tables import read_numbers
from pipeline.workspace import Run, manifest
from pipeline.workspace.freshness import Chain, config_changes

SCHEMA = 2

#: How many pairs of confused classes a report lists.
CONFUSIONS = 12

#: How many misclassified images it shows, and how many probabilities beside each.
IMAGES, PROBABILITIES = 12, 3

_DECISION = ("outcome", "reason", "tolerance", "decided")


@dataclass(frozen=True)
class Sources:
    """The sources of a report: the run's manifests, metrics and predictions, and the data set."""

    run: Run
    train: dict[str, Any]
    evaluate: dict[str, Any]
    export: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    labels: np.ndarray
    predicted: np.ndarray  # by the logits: probabilities, rounded to float32, can be equal where those are not
    probabilities: np.ndarray
    data: dataset.Dataset

    @property
    def views(self) -> Literal[1, 2, 6]:
        """The number of views that each prediction averages; one for older evaluations, which do not record it."""
        return self.metrics.get("views", 1)

    @property
    def correct(self) -> np.ndarray:
        """Which test images are classified correctly, (n,) booleans."""
        return self.predicted == self.labels


def read(chain: Chain) -> Sources:
    """Read the output of the earlier stages. Raises `PipelineError` if a stage is missing or a file is damaged."""
    run = chain.run()
    if run is None:
        raise PipelineError("there is no data set yet: run the DownloadCifar task first")
    train, evaluate, export = (_manifest(run, stage) for stage in ("train", "evaluate", "export"))
    metrics = read_json(manifest.verified(run.stage("evaluate"), evaluate, "metrics.json"))
    predictions = read_predictions(manifest.verified(run.stage("evaluate"), evaluate, "predictions.npz"))
    labels, predicted = (predictions[name].astype(int) for name in ("labels", "predictions"))
    history = read_numbers(
        manifest.verified(run.stage("train"), train, "history.csv").read_text(encoding="utf-8"), whole=["epoch"]
    )
    data = dataset.load(run.workspace.dataset(run.dataset_id))
    values = (labels, predicted, predictions["probabilities"])
    return Sources(run, train, evaluate, export, history, metrics or {}, *values, data)


def gather(chain: Chain, sources: Sources) -> dict[str, Any]:
    """Return the content of `report.json`."""
    trained = configuration.from_record(sources.train["details"]["config"], "the trained configuration")
    # `evaluation` may have changed since training: show what the evaluation used.
    measured = configuration.Evaluation(tta=sources.views)
    trained = msgspec.structs.replace(trained, evaluation=measured)
    decision = _decision(chain, sources.run)
    outputs = output_names(sources.metrics["classes"], sources.probabilities.shape[1])
    return {
        "schema": SCHEMA,
        "run": sources.run.run_id,
        "generation": chain.generation or None,
        "rendered": now(),
        "trained": sources.train["created"],
        "dataset": _dataset(chain, sources),
        "architecture": _architecture(trained.architecture),
        "training": _training(sources, trained),
        "evaluation": _evaluation(sources),
        "comparison": {
            "baseline": _baseline(sources),
            "previous": _previous(decision),
            "decision": {key: decision[key] for key in _DECISION} if decision else None,
        },
        "examples": {
            "mistakes": most_confident_mistakes(sources.probabilities, sources.predicted, sources.labels, outputs)
        },
        "export": _export(sources.export),
        "speed": _speed(sources),
        "provenance": _provenance(chain, sources, trained),
    }


# --- the parts ----------------------------------------------------------------------------------------------------


def _dataset(chain: Chain, sources: Sources) -> dict[str, Any]:
    """Return the facts about the data set, including the recorded change of its source, if any."""
    details = sources.data.manifest["details"]
    facts = pages.dataset_facts(sources.run.dataset_id, details)
    change = (chain.source_record() or {}).get("change")
    return {**facts, "change": change, "remarks": details.get("remarks", [])}


def _architecture(architecture: Architecture) -> dict[str, Any]:
    return {
        **configuration.to_dict(architecture),
        "fingerprint": configuration.fingerprint(architecture),
        "parameters": model.count_parameters(architecture),
        "multiply_adds": model.count_multiply_adds(architecture),
        "layers": [asdict(layer) for layer in model.layer_table(architecture)],
    }


def _training(sources: Sources, trained: Config) -> dict[str, Any]:
    details = sources.train["details"]
    keys = (
        "epochs steps seconds images_per_second resumed exact inexact segments train_images validation_images "
        "normalisation device precision threads cpu host"
    )
    return {
        **{key: details.get(key) for key in keys.split()},
        "seed": trained.training.seed,
        "history": sources.history,
        "measured_with": _measured_with(trained.training),
    }


def _measured_with(training: Training) -> list[str]:
    """Return what makes the training metrics stricter than the validation metrics."""
    conditions = [] if training.augmentation == Augmentation() else ["with augmentation"]
    if training.label_smoothing:
        conditions.append(f"with label smoothing {training.label_smoothing:g}")
    return conditions


def _evaluation(sources: Sources) -> dict[str, Any]:
    metrics, correct = sources.metrics, int(sources.correct.sum())
    bins = statistics.calibration(sources.probabilities, sources.correct)
    per_class = []
    for row in metrics["per_class"]:
        hits = round((row["recall"] or 0) * row["support"])
        per_class.append({**row, "recall_interval": list(statistics.wilson_interval(hits, row["support"]))})
    return {
        "accuracy": metrics["accuracy"],
        "views": sources.views,
        "views_described": tta.described(sources.views),
        "single_view_accuracy": metrics.get("single_view_accuracy", metrics["accuracy"]),
        "interval": list(statistics.wilson_interval(correct, len(sources.labels))),
        "interval_method": "Wilson, 95 %",
        "correct": correct,
        "images": metrics["images"],
        "loss": metrics["loss"],
        "classes": metrics["classes"],
        "per_class": per_class,
        "confusion": metrics["confusion"],
        "confusions": _confusions(metrics["confusion"], metrics["classes"]),
        "ece": statistics.expected_calibration_error(bins),
        "mean_confidence": float(sources.probabilities.max(1).mean()),
        "calibration": [asdict(item) for item in bins],
    }


def _confusions(confusion: list[list[int]], classes: list[str]) -> list[dict[str, Any]]:
    """Return the most frequent mistakes, such as `cat` predicted as `dog`."""
    confusions: list[dict[str, Any]] = [
        {"label": classes[i], "predicted": classes[j], "count": count, "share": count / max(1, sum(row))}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(confusions, key=lambda item: -item["count"])[:CONFUSIONS]


def _baseline(sources: Sources) -> dict[str, Any] | None:
    """Compare the accuracy with that of the published network; None if the data set is not CIFAR-10."""
    details = sources.data.manifest["details"]
    if details["name"] != "cifar10" or details["sample"]:
        return None
    low, high = statistics.wilson_interval(int(sources.correct.sum()), len(sources.labels))
    return {
        "accuracy": PUBLISHED_ACCURACY,
        "difference": sources.metrics["accuracy"] - PUBLISHED_ACCURACY,
        "position": "below" if low > PUBLISHED_ACCURACY else "above" if high < PUBLISHED_ACCURACY else "within",
        "official_images": bool(details["official"]),
    }


def _decision(chain: Chain, run: Run) -> dict[str, Any] | None:
    """Read the promotion gate's decision about these weights, if there is one."""
    recorded = chain.decision_manifest()
    return read_json(manifest.verified(run.stage("promote"), recorded, "decision.json")) if recorded else None


def _previous(decision: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the promotion gate's comparison with the model that was current; None if it made none."""
    compared = decision["compared"] if decision else None
    if not compared or not compared["images"]:
        return None
    shown = {"run": Path(compared["run"]).name, "images_compared": baseline.describe_images(compared)}
    return {"on": "same", "all": None, **compared, **shown}  # older decisions have no `on` and no `all`


def most_confident_mistakes(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, classes: list[str]
) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest probability.

    `probabilities` has the shape (n, classes); `predicted` and `labels` are (n,) class numbers.

    Each has the image's index, its true and predicted class, and the largest probabilities, always including that of
    the true class.
    """
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-probabilities.max(1)[wrong], kind="stable")
    mistakes = []
    for index in wrong[order][:IMAGES]:
        row = probabilities[index]
        best = np.argsort(-row, kind="stable")[:PROBABILITIES]
        if labels[index] not in best:
            best[-1] = labels[index]
        mistakes.append(
            {
                "image": int(index),
                "label": classes[int(labels[index])],
                "predicted": classes[int(predicted[index])],
                "probabilities": {classes[int(number)]: round(float(row[number]), 6) for number in best},
            }
        )
    return mistakes


def _export(export: dict[str, Any]) -> dict[str, Any]:
    details = export["details"]
    keys = ("input", "outputs", "normalisation", "check", "versions")
    return {"files": export["files"], **{key: details[key] for key in keys}}


def _speed(sources: Sources) -> dict[str, Any]:
    rates = [row["images_per_second"] for row in sources.history if row["images_per_second"]]
    seconds = [row["seconds"] for row in sources.history if row["seconds"]]
    evaluate = sources.evaluate["details"]
    return {
        "training_seconds": sources.train["details"]["seconds"],
        "epoch_seconds_median": median(seconds) if seconds else None,
        "training_images_per_second_median": median(rates) if rates else None,
        "evaluation_seconds": evaluate["seconds"],
        "evaluation_images_per_second": evaluate["images"] / evaluate["seconds"] if evaluate["seconds"] else None,
        "evaluation_device": evaluate["device"],
        "onnxruntime_images_per_second": sources.export["details"]["check"]["onnxruntime_images_per_second"],
    }


def _provenance(chain: Chain, sources: Sources, trained: Config) -> dict[str, Any]:
    details = sources.train["details"]
    stages = {"train": sources.train, "evaluate": sources.evaluate, "export": sources.export}
    return {
        "config": _chosen(trained, len(sources.metrics["classes"])),
        "config_changes": config_changes(sources.train, chain.config),  # as of `rendered`
        "versions": details["versions"],
        "stages": {
            name: {"version": value["version"], "created": value["created"], "files": value["files"]}
            for name, value in stages.items()
        },
    }


def _chosen(trained: Config, classes: int) -> list[dict[str, Any]]:
    """Return the configuration's required and non-default keys."""
    least = {
        "architecture": {"name": trained.architecture.name, "conv_arch": trained.architecture.conv_arch},
        "training": {"epochs": trained.training.epochs},
    }
    default = dict(flatten(configuration.to_dict(configuration.from_dict(least)), lists=False))
    default["architecture.classes"] = classes
    required = dict(flatten(least, lists=False))
    value = flatten(configuration.to_record(trained), lists=False)
    return [{"key": key, "value": leaf} for key, leaf in value if key in required or leaf != default.get(key)]


# --- reading ------------------------------------------------------------------------------------------------------


def _manifest(run: Run, stage: str) -> dict[str, Any]:
    recorded = manifest.read(run.stage(stage))
    if recorded is None:
        raise PipelineError(f"{run.stage(stage)}: this stage is not done yet: run the Report task, which runs it first")
    return recorded
