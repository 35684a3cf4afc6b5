"""Rank the runs of a comparison from their manifests, and write its page and tables.

Writes `index.html` (self-contained), `ranking.csv` (one row per configuration), `runs.csv` (one row per run),
`ranking.json` (everything, for programs) and the manifest. Never imports MXNet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pipeline import config, dataset, model, pages
from pipeline.comparison import Comparison, Entry, page
from pipeline.config.difference import flatten
from pipeline.errors import PipelineError
from pipeline.evaluation import tta
from pipeline.evaluation.statistics import mean_intervals, wilson_interval
from pipeline.files import now
from pipeline.pages.formats import plain
from pipeline.process.reporter import Reporter
from pipeline.tables import csv_text
from pipeline.workspace import manifest
from pipeline.workspace.freshness import Chain, config_changes

SCHEMA = 1

#: Training times are comparable only if these are equal.
_CONDITIONS = ("device", "precision", "threads", "cpu")

_RANKING_COLUMNS = (
    "rank config architecture fingerprint seeds accuracy accuracy_low accuracy_high accuracy_least accuracy_most "
    "parameters multiply_adds epochs seconds images_per_second"
)

_RUN_COLUMNS = (
    "config run seed accuracy views loss epochs seconds images_per_second device precision threads cpu host resumed"
)


def render(chain: Chain, reporter: Reporter, options: dict[str, Any]) -> dict[str, Any]:
    """Render and publish a comparison whose runs are done. Returns the manifest.

    `options` come from `comparison.request`, the workspace from `chain`. Raises `PipelineError` if a run is not done.
    """
    started = time.monotonic()
    compared = _comparison(chain, options)
    inputs = compared.inputs()
    facts = gather(compared)
    contents: dict[str, Any] = {
        "index.html": page.html(facts),
        "ranking.csv": csv_text(_RANKING_COLUMNS.split(), map(_ranking_row, facts["ranking"])),
        "runs.csv": csv_text(_RUN_COLUMNS.split(), (run for group in facts["ranking"] for run in group["runs"])),
        "ranking.json": facts,
    }
    return pages.publish(
        compared.folder, "compare", contents, inputs, {"name": compared.name}, started=started, reporter=reporter
    )


def gather(compared: Comparison) -> dict[str, Any]:
    """Return the content of `ranking.json`, best configuration first."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for entry in compared.entries:
        grouped.setdefault(entry.source, []).append(_run(compared, entry))
    data = _dataset(compared)
    ranking = [_group(source, runs) for source, runs in grouped.items()]
    _add_intervals(ranking, data["test_images"])
    ranking.sort(key=lambda group: (-group["accuracy"], group["multiply_adds"]))
    efficient = page.pareto_front(ranking, "multiply_adds")
    for rank, group in enumerate(ranking, start=1):
        group["rank"] = rank
        group["difference"] = group["accuracy"] - ranking[0]["accuracy"]
        group["efficient"] = group in efficient
    runs = [run for group in ranking for run in group["runs"]]
    return {
        "schema": SCHEMA,
        "name": compared.name,
        "rendered": now(),
        "dataset": data,
        "baseline": pages.PUBLISHED_ACCURACY if data["name"] == "cifar10" and not data["sample"] else None,
        "seeds": max(len(group["runs"]) for group in ranking),
        "ranking": ranking,
        "conditions": [
            dict(zip(_CONDITIONS, values, strict=True))
            for values in dict.fromkeys(tuple(run[key] for key in _CONDITIONS) for run in runs)
        ],
        "config_changes": [f"{run['run']}: {line}" for run in runs for line in run["config_changes"]],
        "views": sorted({run["views"] for run in runs}),
        "averaged": [f"{run['run']}: {tta.described(run['views'])}" for run in runs if run["views"] > 1],
        "inexact": [f"{run['run']}: {line}" for run in runs for line in run["inexact"]],
    }


# --- the parts ----------------------------------------------------------------------------------------------------


def _comparison(chain: Chain, options: dict[str, Any]) -> Comparison:
    entries = tuple(
        Entry(
            entry["source"],
            entry["seed"],
            Chain(chain.workspace, config.from_dict(entry["config"], entry["source"]), entry["generation"]),
        )
        for entry in options["entries"]
    )
    return Comparison(chain.workspace, options["name"], entries, options["reports"])


def _run(compared: Comparison, entry: Entry) -> dict[str, Any]:
    train, evaluate = entry.chain.manifest("train"), entry.chain.manifest("evaluate")
    run = entry.chain.run()
    if run is None or train is None or evaluate is None:
        raise PipelineError(f"{entry.chain.run_id}: not trained and evaluated yet: run the Compare task")
    details, measured = train["details"], evaluate["details"]
    report = run.stage("report") / "index.html"
    keys = ("epochs", "seconds", "images_per_second", *_CONDITIONS, "host", "resumed", "inexact")
    return {
        "config": entry.source,
        "run": run.run_id,
        "dataset": run.dataset_id,
        "generation": entry.chain.generation or None,
        "seed": details["config"]["training"]["seed"],
        "accuracy": measured["accuracy"],
        "views": measured.get("views", 1),
        "loss": measured["loss"],
        **{key: details[key] for key in keys},
        "trained": train["created"],
        "architecture": details["config"]["architecture"],
        "config_changes": config_changes(train, entry.chain.config),
        "report": os.path.relpath(report, compared.folder) if manifest.read(report.parent) else None,
    }


def _dataset(compared: Comparison) -> dict[str, Any]:
    """Return the facts about the data set; `plan` has checked that all runs share it."""
    folder = compared.entries[0].chain.dataset_folder()
    if folder is None:
        raise PipelineError("there is no data set yet: run the Compare task, which prepares it first")
    return pages.dataset_facts(folder.name, dataset.load(folder).manifest["details"])


def _group(source: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the runs of one configuration by their means."""
    architecture = config.from_dict({"architecture": runs[0]["architecture"], "training": {"epochs": 1}}).architecture
    accuracies = [run["accuracy"] for run in runs]
    rates = [run["images_per_second"] for run in runs if run["images_per_second"]]
    return {
        "config": source,
        "architecture": {**config.to_dict(architecture), "fingerprint": config.fingerprint(architecture)},
        "other_keys": _other_keys(architecture),
        "parameters": model.count_parameters(architecture),
        "multiply_adds": model.count_multiply_adds(architecture),
        "accuracy": fmean(accuracies),
        "least": min(accuracies),
        "most": max(accuracies),
        "loss": fmean(run["loss"] for run in runs),
        "epochs": sorted({run["epochs"] for run in runs}),
        "seconds": fmean(run["seconds"] for run in runs),
        "images_per_second": fmean(rates) if rates else None,
        "runs": runs,
    }


def _other_keys(architecture: config.Architecture) -> list[str]:
    """List the non-default keys that have no column of their own."""
    minimal = config.Architecture(name=architecture.name, conv_arch=architecture.conv_arch)
    given, default = ({**config.to_dict(item), "dense": [], "classes": None} for item in (architecture, minimal))
    defaults = dict(flatten(default))
    return [f"{key}: {plain(value)}" for key, value in flatten(given) if value != defaults.get(key)]


def _add_intervals(ranking: Sequence[dict[str, Any]], images: int) -> None:
    """Add an interval to each accuracy: of the mean over the seeds, or over the test images if there is one seed."""
    groups = [[run["accuracy"] for run in group["runs"]] for group in ranking]
    several = any(len(group) > 1 for group in groups)
    if several:
        intervals = mean_intervals(groups)
    else:
        intervals = [wilson_interval(round(group[0] * images), images) for group in groups]
    for group, (low, high) in zip(ranking, intervals, strict=True):
        group["interval"] = [max(0.0, low), min(1.0, high)]
        group["interval_of"] = "seeds" if several else "images"


# --- tables -------------------------------------------------------------------------------------------------------


def _ranking_row(group: dict[str, Any]) -> dict[str, Any]:
    architecture = group["architecture"]
    return {
        **group,
        "architecture": architecture["name"],
        "fingerprint": architecture["fingerprint"][:8],
        "seeds": len(group["runs"]),
        "accuracy_low": group["interval"][0],
        "accuracy_high": group["interval"][1],
        "accuracy_least": group["least"],
        "accuracy_most": group["most"],
        "epochs": " ".join(map(str, group["epochs"])),
    }
