"""Generations: which ones exist, whether one is due, and which weights a warm start begins with.

Read-only, and imports nothing heavy: a timer that finds nothing due exits at once.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.files import read_json
from pipeline.retraining import periods, registry
from pipeline.retraining.registry import Entry, Pointer
from pipeline.workspace import (
    MANIFEST,
    RUN_FOLDERS,
    Run,
    Workspace,
    events,
    generation_seed,
    manifest,
    run_id,
    with_generation_seed,
)
from pipeline.workspace.freshness import Chain, config_changes, trained_epochs

#: The stages of a generation, in order. The report shows the gate's decision, so the gate runs first.
STAGES = ("dataset", "train", "evaluate", "export", "promote", "report")

#: Outcomes of the promotion gate.
PROMOTED, REFUSED = "promoted", "refused"

#: What a promoted generation is called once it was rolled back.
ROLLED_BACK = "rolled back"

#: The gate's reason if there is no current model to compare with.
FIRST_MODEL = "first model"


# --- existing generations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """A trained generation. `outcome` is the gate's decision, empty if there is none yet.

    A run without a generation is included once it has been current; it goes by the name of its folder.
    """

    name: str
    run: Run
    trained: str
    accuracy: float | None
    outcome: str


def find(workspace: Workspace, config: Config) -> list[Generation]:
    """Return the trained generations of this data set and architecture (matched by name), newest first."""
    ever_current = registry.ever_current(workspace.current(config))
    made = []
    for run, train in _trained(workspace, config):
        outcome = (decision(run) or {}).get("outcome", "")
        if not run.generation and not outcome:
            if run.place not in ever_current:
                continue
            outcome = PROMOTED
        evaluate = manifest.read(run.stage("evaluate"))
        accuracy = evaluate["details"].get("accuracy") if evaluate else None
        made.append(Generation(run.generation or run.run_id, run, train["created"], accuracy, outcome))
    return sorted(made, key=lambda item: (item.trained, item.name), reverse=True)


def labels(made: Sequence[Generation]) -> list[str]:
    """Return an unambiguous label for each generation: its name, or its run's path if others share the name."""
    names = [item.name for item in made]
    return [item.run.place if names.count(item.name) > 1 else item.name for item in made]


def decision(run: Run) -> dict[str, Any] | None:
    """Read what the promotion gate decided about a run; None if it has not decided yet."""
    if manifest.read(run.stage("promote")) is None:
        return None
    value = read_json(run.stage("promote") / "decision.json")
    if not isinstance(value, dict) or value.get("outcome") not in (PROMOTED, REFUSED):
        return None
    return value if isinstance(value.get("reason", ""), str) else None


def decided(chain: Chain) -> set[str]:
    """Return the names of all generations that the gate has ever decided about, including deleted ones."""
    model, outcomes = registry.event_fields(chain), (PROMOTED, REFUSED)
    logged = (event for event in events.read(chain.workspace) if event.get("event") in outcomes)
    names = {str(event.get("generation")) for event in logged if model.items() <= event.items()}
    return names | {item.name for item in find(chain.workspace, chain.config) if item.outcome}


def superseded_by(generation: str, pointer: Pointer | None, place: str = "") -> Entry | None:
    """Return the newest model of a period if that is later than the generation's, which the gate then refuses.

    `place` is the run of the generation, if it has one.
    """
    others = (entry for entry in (pointer.entry, *pointer.before) if entry.run != place) if pointer else ()
    newest = next((entry for entry in others if periods.period(entry.generation)), None)
    return newest if newest and periods.is_older(generation, newest.generation) else None


def verdict(decision: dict[str, Any]) -> str:
    """Describe the gate's decision: `promoted (first model)`, or the outcome with the comparison."""
    outcome, reason = decision.get("outcome"), decision.get("reason")
    return f"{outcome} ({reason})" if reason == FIRST_MODEL else f"{outcome}: {reason}"


def _trained(workspace: Workspace, config: Config) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Yield the finished trainings of this data set and architecture (by name) and their manifests. Skips `seed-N`."""
    runs_of_both = f"runs/{config.data.name}-*/{config.architecture.name}-*"
    workspace.storage.refresh_matching(runs_of_both, ("train", "evaluate", "promote"))
    data, architecture = re.escape(config.data.name), re.escape(config.architecture.name)
    pattern = re.compile(rf"{data}-[0-9a-f]{{8}}/{architecture}-[0-9a-f]{{8}}(@.+)?")
    for run in workspace.all_runs(data):
        wanted = pattern.fullmatch(f"{run.dataset_id}/{run.run_id}") and generation_seed(run.generation) is None
        if wanted and (train := manifest.read(run.stage("train"))):
            yield run, train


# --- due or not ---------------------------------------------------------------------------------------------------


def unfinished(chain: Chain) -> list[str]:
    """Return why the generation of `chain` is not finished; empty if it is, whatever the gate decided.

    Unlike in `Chain.why`, a raised `training.epochs` is no reason: it applies from the next generation on.
    """
    for stage in STAGES:
        folder = chain.folder(stage)
        if stage == "dataset" or folder is None:
            reasons = chain.why(stage)
        else:
            reasons = chain.problems(stage, folder)
        if reasons:
            return [f"{stage}: {reason}" for reason in reasons]
    return []


def why_due(chain: Chain) -> list[str]:
    """Return the reasons why the generation of `chain` is due; empty if it is not."""
    reasons = unfinished(chain)
    run = chain.run()
    if not reasons or run is None or run.stage("train").exists():
        return reasons
    made = find(chain.workspace, chain.config)
    same_name = next((item.run for item in made if item.name == chain.generation), None)
    if same_name is None:
        return [
            f"there is no generation {chain.generation} yet",
            *(reason for reason in reasons if reason.startswith("dataset: ")),
        ]
    changes = []
    if same_name.dataset_id != run.dataset_id:
        change = (chain.source_record() or {}).get("change") or {}
        details = f": {change['what']}" if change.get("what") and change["since"] == same_name.dataset_id else ""
        changes.append(f"the data set changed from {same_name.dataset_id} to {run.dataset_id}{details}")
    if same_name.run_id != run.run_id:
        changes.append(f"the architecture changed from {same_name.run_id} to {run.run_id}")
    return changes or reasons


def same_weights(chain: Chain) -> Run | None:
    """Find a finished run whose weights this generation would only reproduce.

    Such a run has the same images, architecture, settings and seed, and was trained from scratch and bit-reproducibly.
    Returns None if there is none, or if this generation itself is already trained.
    """
    run, config, record = chain.run(), chain.config, chain.source_record()
    if record is None or chain.source_changed(record):  # the images are not known yet
        return None
    if run is None or not from_scratch(config) or (run.stage("train") / MANIFEST).exists():
        return None
    chain.workspace.storage.refresh_matching(f"runs/{run.dataset_id}/{run_id(config.architecture)}*", RUN_FOLDERS)
    for other in reversed(run.siblings()):
        if generation_seed(other.generation) is None and not chain.problems("train", other.stage("train")):
            train = manifest.read(other.stage("train"))
            if train and _would_repeat(train, config):
                return other
    return None


def from_scratch(config: Config) -> bool:
    """Whether generations start from random weights, rather than from those of another run."""
    return not (config.training.init_from or config.retrain.warm_start)


def subject(chain: Chain) -> Chain:
    """Return the chain whose run stands for this generation: its own, or one that its training would only repeat."""
    twin = same_weights(chain)
    return dataclasses.replace(chain, generation=twin.generation) if twin else chain


def next_due(chain: Chain, today: datetime.date) -> tuple[str, datetime.date, list[str]]:
    """Return the generation that `Retrain` makes next, the day it is due, and why, if that is today."""
    every = chain.given.retrain.every
    name = periods.name(every, today)
    given = with_generation_seed(chain.given, name)
    reasons = why_due(subject(dataclasses.replace(chain, given=given, generation=name)))
    if reasons:
        return name, today, reasons
    start = periods.next_start(every, today)
    return periods.name(every, start), start, []


def _would_repeat(train: dict[str, Any], config: Config) -> bool:
    """Whether training this configuration from scratch would give exactly the recorded weights."""
    details = train["details"]
    from_scratch = [segment.get("how") for segment in details.get("segments", [])][:1] == ["started"]
    same_settings = trained_epochs(train) == config.training.epochs and not config_changes(train, config)
    return details.get("exact") is True and from_scratch and same_settings


# --- warm starts --------------------------------------------------------------------------------------------------


def plain_run(chain: Chain) -> Entry | None:
    """Return the finished run without a generation, which is the current model until a generation is promoted.

    Prefers the run with the same images and architecture, then the newest run with the same names. Returns None if no
    such run is intact, or if the chain itself has no generation.
    """
    run = chain.run()
    if run is None or not run.generation:
        return None
    same = f"runs/{run.dataset_id}/{run_id(chain.config.architecture)}"
    trained = [(plain, train) for plain, train in _trained(chain.workspace, chain.config) if not plain.generation]
    trained.sort(key=lambda pair: (pair[0].place == same, pair[1]["created"]), reverse=True)
    entries = (registry.entry_of(plain) for plain, _ in trained)
    return next((entry for entry in entries if entry and not registry.problems(chain.workspace, entry)), None)


def warm_start(chain: Chain) -> tuple[Path | None, str]:
    """Return the weights from which this generation starts, or None, and a line about them for the log."""
    named = chain.generation and generation_seed(chain.generation) is None
    if not named or not chain.config.retrain.warm_start:
        return None, ""
    current = registry.read(chain.workspace.current(chain.config)) or plain_run(chain)
    if current is None:
        return None, "warm start: there is no current model yet, training from scratch"
    if current.architecture != chain.config.fingerprint:
        return None, f"warm start: {current.run} has another architecture, training from scratch"
    if problems := registry.problems(chain.workspace, current):
        return None, f"warm start: {'; '.join(problems)}, training from scratch"
    run = registry.run_at(chain.workspace, current.run)
    return run.stage("train") / "model.params", f"warm start from the current model, {current.run}"
