"""Everything that a report says, as plain JSON: gathered from the manifests of a run and the files that they record.

Reads `train/`, `evaluate/` and `export/` of the run and the data set; leaves nothing behind.
"""

from __future__ import annotations

import statistics as numbers
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from pipeline import config as configuration
from pipeline import dataset, model, pages
from pipeline.config import Architecture, Augmentation, Config, Training
from pipeline.errors import PipelineError, WorkspaceError
from pipeline.evaluation import output_names, read_predictions, statistics, tta
from pipeline.files import now, read_json
from pipeline.pages import PUBLISHED_ACCURACY
from pipeline.report import examples
from pipeline.retraining import generations, registry
from pipeline.tables import read_numbers
from pipeline.workspace import Run, manifest
from pipeline.workspace.freshness import Chain, config_changes

SCHEMA = 1

CONFUSIONS = 8

#: Generations that a report lists at most.
GENERATIONS = 24

_DECISION = ("outcome", "reason", "tolerance", "decided")


@dataclass(frozen=True)
class Sources:
    """What a report is made from: the run's manifests, its measured values, its predictions, the images."""

    run: Run
    train: dict[str, Any]
    evaluate: dict[str, Any]
    export: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    labels: np.ndarray
    probabilities: np.ndarray
    data: dataset.Dataset

    @property
    def views(self) -> Literal[1, 2, 6]:
        """Over how many views the predictions are averaged; evaluations from before there were views used one."""
        return self.metrics.get("views", 1)

    @property
    def correct(self) -> np.ndarray:
        """(n,) booleans: which test images were predicted right."""
        return self.probabilities.argmax(1) == self.labels


def read(chain: Chain) -> Sources:
    """Read what the earlier stages left; raises `PipelineError` when a stage is missing or a file is damaged."""
    run = chain.run()
    if run is None:
        raise PipelineError("there is no data set yet: run the DownloadCifar task first")
    train, evaluate, export = (_manifest(run, stage) for stage in ("train", "evaluate", "export"))
    metrics = read_json(manifest.verified(run.stage("evaluate"), evaluate, "metrics.json"))
    labels, probabilities = _predictions(manifest.verified(run.stage("evaluate"), evaluate, "predictions.npz"))
    history = read_numbers(
        manifest.verified(run.stage("train"), train, "history.csv").read_text(encoding="utf-8"), whole=["epoch"]
    )
    data = dataset.load(run.workspace.dataset(run.dataset_id))
    return Sources(run, train, evaluate, export, history, metrics or {}, labels, probabilities, data)


def gather(chain: Chain, sources: Sources, previous: dict[str, Any] | None) -> dict[str, Any]:
    """The content of `report.json`.

    `previous` names an earlier run to compare with, `{"run_id": …}`; without it, it is the newest earlier generation.
    """
    trained = configuration.from_record(sources.train["details"]["config"], "the trained configuration")
    # Of the configuration, `evaluation` alone may have changed since the training: the evaluation knows what it used.
    measured = configuration.Evaluation(tta=sources.views)
    trained = msgspec.structs.replace(trained, evaluation=measured)
    decision = _decision(chain, sources.run)
    return {
        "schema": SCHEMA,
        "run": sources.run.run_id,
        "generation": chain.generation or None,
        "rendered": now(),
        "trained": sources.train["created"],
        "dataset": pages.dataset_facts(sources.run.dataset_id, sources.data.manifest["details"]),
        "architecture": _architecture(trained.architecture),
        "training": _training(sources, trained),
        "evaluation": _evaluation(sources),
        "comparison": {
            "baseline": _baseline(sources),
            "previous": _gate_baseline(decision) or _previous(sources, previous),
            "decision": {key: decision[key] for key in _DECISION} if decision else None,
        },
        "generations": _generations(chain),
        "examples": _examples(sources),
        "export": _export(sources.export),
        "speed": _speed(sources),
        "provenance": _provenance(chain, sources, trained),
    }


# --- the parts ----------------------------------------------------------------------------------------------------


def _architecture(architecture: Architecture) -> dict[str, Any]:
    layers = model.layer_table(architecture)
    return {
        **configuration.to_dict(architecture),
        "fingerprint": configuration.fingerprint(architecture),
        "parameters": model.count_parameters(architecture),
        "multiply_adds": model.count_multiply_adds(architecture),
        "layers": [asdict(layer) for layer in layers],
        "blocks": _blocks(layers, architecture),
    }


def _blocks(layers: Sequence[model.Layer], architecture: Architecture) -> list[dict[str, Any]]:
    """The network in the steps in which it is drawn: the convolution blocks, then each dense layer."""
    parameters = sum(layer.parameters for layer in layers)
    work = sum(layer.multiply_adds for layer in layers)
    groups: list[list[model.Layer]] = []
    for layer in layers:
        if groups and layer.block >= 0 and groups[-1][0].block == layer.block:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    blocks = []
    dense = 0
    for group in groups:
        first, last = group[0], group[-1]
        dense += first.block < 0
        name = (
            f"Block {first.block + 1}" if first.block >= 0 else f"Dense {dense}" if first.kind == "dense" else "Output"
        )
        own, own_work = sum(layer.parameters for layer in group), sum(layer.multiply_adds for layer in group)
        blocks.append(
            {
                "name": name,
                "kind": "convolutions" if first.block >= 0 else first.kind,
                "convolutions": architecture.conv_arch[first.block][0] if first.block >= 0 else 0,
                "layers": _layer_names(group, architecture),
                "output": list(last.output),
                "parameters": own,
                "parameter_share": own / parameters,
                "multiply_adds": own_work,
                "compute_share": own_work / work,
            }
        )
    return blocks


def _layer_names(group: Sequence[model.Layer], architecture: Architecture) -> list[str]:
    """What happens in one step, in words: `2 x conv 3x3, 256 channels`, `ReLU`, `max pool 2x2`."""
    first = group[0]
    if first.block < 0:
        drop = [f"dropout {architecture.dropout:g}"] if first.kind == "dense" and architecture.dropout else []
        return [f"{first.output[0]} units", *(["ReLU", *drop] if first.kind == "dense" else ["softmax"])]
    count, channels = architecture.conv_arch[first.block]
    times = f"{count} × " if count > 1 else ""
    norm = ["batch norm"] if architecture.batch_norm else []
    return [f"{times}conv 3×3, {channels} channels", *norm, "ReLU", "max pool 2×2"]


def _training(sources: Sources, trained: Config) -> dict[str, Any]:
    details = sources.train["details"]
    keys = (
        "epochs",
        "steps",
        "seconds",
        "images_per_second",
        "resumed",
        "exact",
        "inexact",
        "segments",
        "train_images",
        "validation_images",
        "normalisation",
        "device",
        "precision",
        "threads",
        "cpu",
        "host",
    )
    return {
        **{key: details.get(key) for key in keys},
        "seed": trained.training.seed,
        "history": sources.history,
        "measured_with": _measured_with(trained.training),
    }


def _measured_with(training: Training) -> list[str]:
    """What makes training's loss and accuracy harder than validation's."""
    words = [] if training.augmentation == Augmentation() else ["with augmentation"]
    if training.label_smoothing:
        words.append(f"with label smoothing {training.label_smoothing:g}")
    return words


def _evaluation(sources: Sources) -> dict[str, Any]:
    metrics, correct = sources.metrics, int(sources.correct.sum())
    bins = statistics.calibration(sources.probabilities, sources.labels)
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
    """The most frequent mistakes, as `cat` predicted as `dog`."""
    found: list[dict[str, Any]] = [
        {"label": classes[i], "predicted": classes[j], "count": count, "share": count / max(1, sum(row))}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda item: -item["count"])[:CONFUSIONS]


def _baseline(sources: Sources) -> dict[str, Any] | None:
    """How the accuracy compares with that of the published network; None where the data set is another one."""
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
    """What the promotion gate decided about these weights; None where it was not asked."""
    recorded = chain.decision_manifest()
    return read_json(manifest.verified(run.stage("promote"), recorded, "decision.json")) if recorded else None


def _gate_baseline(decision: dict[str, Any] | None) -> dict[str, Any] | None:
    """The run that the promotion gate compared with, in the form of `_previous`."""
    compared = decision["compared"] if decision else None
    if not compared:
        return None
    keys = ("accuracy", "difference", "gained", "lost", "p", "interval")
    return {"run": Path(compared["run"]).name, **{key: compared[key] for key in keys}}


def _generations(chain: Chain) -> list[dict[str, Any]]:
    """The generations of this architecture and data set, newest first, as far as they are now."""
    try:
        pointer = registry.read(chain.workspace.current(chain.config))
    except WorkspaceError:
        pointer = None  # the gate's business, see Status and Doctor; it must not keep this one from being reported
    standing = {run: "rolled back" for run in pointer.rolled_back} if pointer else {}
    standing |= {pointer.run: "current"} if pointer else {}
    return [
        {
            "name": item.name,
            "run": item.run.run_id,
            "trained": item.trained,
            "accuracy": item.accuracy,
            "outcome": item.outcome,
            "standing": standing.get(item.run.place),
        }
        for item in generations.find(chain.workspace, chain.config)[:GENERATIONS]
    ]


def _previous(sources: Sources, named: dict[str, Any] | None) -> dict[str, Any] | None:
    """How the predictions compare with those of an earlier run on the same test images; None without one."""
    if named and named.get("run_id"):
        run: Run | None = sources.run.workspace.run(sources.run.dataset_id, named["run_id"])
    else:
        run = generations.previous(sources.run, sources.train)
    evaluate = manifest.read(run.stage("evaluate")) if run else None
    if run is None or evaluate is None:
        return None
    try:
        labels, probabilities = _predictions(manifest.verified(run.stage("evaluate"), evaluate, "predictions.npz"))
    except WorkspaceError:
        return None  # the earlier run's own business; it must not keep this one from being reported
    if not np.array_equal(labels, sources.labels):
        return None
    before = probabilities.argmax(1) == labels
    return {
        "run": run.run_id,
        "accuracy": float(before.mean()),
        "difference": float(sources.correct.mean() - before.mean()),
        **statistics.compare_paired(sources.correct, before),
    }


def _examples(sources: Sources) -> dict[str, Any]:
    names = output_names(sources.metrics["classes"], sources.probabilities.shape[1])
    given = (sources.probabilities, sources.labels, names)
    return {
        "mistakes": [example.facts() for example in examples.most_confident_mistakes(*given)],
        "correct": [example.facts() for example in examples.least_confident_correct(*given)],
    }


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
        "epoch_seconds_median": numbers.median(seconds) if seconds else None,
        "training_images_per_second_median": numbers.median(rates) if rates else None,
        "evaluation_seconds": evaluate["seconds"],
        "evaluation_images_per_second": evaluate["images"] / evaluate["seconds"] if evaluate["seconds"] else None,
        "evaluation_device": evaluate["device"],
        "onnxruntime_images_per_second": sources.export["details"]["check"]["onnxruntime_images_per_second"],
    }


def _provenance(chain: Chain, sources: Sources, trained: Config) -> dict[str, Any]:
    details = sources.train["details"]
    stages = {"train": sources.train, "evaluate": sources.evaluate, "export": sources.export}
    return {
        "config": _config_rows(trained),
        "config_changes": config_changes(
            sources.train, chain.config
        ),  # as of `rendered`; later changes render nothing anew
        "versions": details["versions"],
        "stages": {
            name: {"version": value["version"], "created": value["created"], "files": value["files"]}
            for name, value in stages.items()
        },
    }


def _config_rows(trained: Config) -> list[dict[str, Any]]:
    """Every key of the configuration with its value and its default; `chosen` are those a reader has to know."""
    least = {
        "architecture": {"name": trained.architecture.name, "conv_arch": trained.architecture.conv_arch},
        "training": {"epochs": trained.training.epochs},
    }
    default = dict(_leaves(configuration.to_dict(configuration.from_dict(least))))
    value = configuration.to_record(trained)
    required = ("architecture.name", "architecture.conv_arch", "training.epochs")
    return [
        {
            "key": key,
            "value": leaf,
            "default": None if key in required else default.get(key),
            "required": key in required,
            "chosen": key in required or leaf != default.get(key),
        }
        for key, leaf in _leaves(value)
    ]


def _leaves(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested dicts as `("training.schedule.kind", "step")`; lists stay whole."""
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        found += _leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]
    return found


# --- reading ------------------------------------------------------------------------------------------------------


def _manifest(run: Run, stage: str) -> dict[str, Any]:
    found = manifest.read(run.stage(stage))
    if found is None:
        raise PipelineError(f"{run.stage(stage)}: this stage is not done yet: run the Report task, which runs it first")
    return found


def _predictions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_predictions(path)
    return arrays["labels"].astype(int), arrays["probabilities"]
