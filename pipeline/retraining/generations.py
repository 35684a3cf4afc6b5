"""Generations: which ones exist, whether one is due, and the weights that a warm start begins with.

Reads manifests, leaves nothing behind. Imports nothing heavy: a timer that finds nothing due is done in a moment.
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
from pipeline.retraining.registry import Entry
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

#: The stages of a generation, in order; the gate comes before the report, which shows its decision.
STAGES = ("dataset", "train", "evaluate", "export", "promote", "report")

#: What the promotion gate decides.
PROMOTED, REFUSED = "promoted", "refused"

#: Its reason when there is no current model to compare with.
FIRST_MODEL = "first model"


# --- which ones exist ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """A trained generation. `outcome` is the gate's decision, "" before it.

    The run without a generation is one as soon as it was ever current; its name is that of its folder.
    """

    name: str
    run: Run
    trained: str
    accuracy: float | None
    outcome: str


def find(workspace: Workspace, config: Config) -> list[Generation]:
    """The trained generations of this data set and architecture (both by name), newest first."""
    ever_current = registry.ever_current(workspace.current(config))
    found = []
    for run, train in _trained(workspace, config):
        outcome = (decision(run) or {}).get("outcome", "")
        if not run.generation and not outcome:
            if run.place not in ever_current:
                continue
            outcome = PROMOTED
        evaluate = manifest.read(run.stage("evaluate"))
        accuracy = evaluate["details"].get("accuracy") if evaluate else None
        found.append(Generation(run.generation or run.run_id, run, train["created"], accuracy, outcome))
    return sorted(found, key=lambda item: (item.trained, item.name), reverse=True)


def labels(found: Sequence[Generation]) -> list[str]:
    """What to call generations, each by itself: the name, or the run's place where others have the same name."""
    names = [item.name for item in found]
    return [item.run.place if names.count(item.name) > 1 else item.name for item in found]


def decision(run: Run) -> dict[str, Any] | None:
    """What the promotion gate decided about a run; None before that."""
    if manifest.read(run.stage("promote")) is None:
        return None
    value = read_json(run.stage("promote") / "decision.json")
    if not isinstance(value, dict) or value.get("outcome") not in (PROMOTED, REFUSED):
        return None
    return value if isinstance(value.get("reason", ""), str) else None


def decided(chain: Chain) -> set[str]:
    """The names of the generations that the gate ever decided about, those that are gone included."""
    about, outcomes = registry.about(chain), (PROMOTED, REFUSED)
    logged = (event for event in events.read(chain.workspace) if event.get("event") in outcomes)
    names = {str(event.get("generation")) for event in logged if about.items() <= event.items()}
    return names | {item.name for item in find(chain.workspace, chain.config) if item.outcome}


def verdict(decision: dict[str, Any]) -> str:
    """The gate's decision for people: `promoted (first model)`, or with what it was compared with."""
    outcome, reason = decision.get("outcome"), decision.get("reason")
    return f"{outcome} ({reason})" if reason == FIRST_MODEL else f"{outcome}: {reason}"


def _trained(workspace: Workspace, config: Config) -> Iterator[tuple[Run, dict[str, Any]]]:
    """The finished trainings on this data set and architecture (both by name), with their manifests.

    Not those that repeat one with another seed.
    """
    runs_of_both = f"runs/{config.data.name}-*/{config.architecture.name}-*"
    workspace.storage.refresh_matching(runs_of_both, ("train", "evaluate", "promote"))
    data, architecture = re.escape(config.data.name), re.escape(config.architecture.name)
    pattern = re.compile(rf"{data}-[0-9a-f]{{8}}/{architecture}-[0-9a-f]{{8}}(@.+)?")
    for run in workspace.all_runs(data):
        wanted = pattern.fullmatch(f"{run.dataset_id}/{run.run_id}") and generation_seed(run.generation) is None
        if wanted and (train := manifest.read(run.stage("train"))):
            yield run, train


# --- whether one is due -------------------------------------------------------------------------------------------


def unfinished(chain: Chain) -> list[str]:
    """Why the generation of `chain` is not finished; empty when it is, whatever the gate decided.

    Unlike in `Chain.why`, raised epochs are no reason: a finished generation stays as it is, the next one has them.
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
    """Why the generation of `chain` is due, for people; empty when it is not."""
    reasons = unfinished(chain)
    run = chain.run()
    if not reasons or run is None or run.stage("train").exists():
        return reasons
    made = find(chain.workspace, chain.config)
    same_name = next((item.run for item in made if item.name == chain.generation), None)
    if same_name is None:
        return [
            f"there is no generation {chain.generation} yet",
            *(why for why in reasons if why.startswith("dataset: ")),
        ]
    changed = []
    if same_name.dataset_id != run.dataset_id:
        change = (chain.source_record() or {}).get("change") or {}
        what = f": {change['what']}" if change.get("what") and change["since"] == same_name.dataset_id else ""
        changed.append(f"the data set changed from {same_name.dataset_id} to {run.dataset_id}{what}")
    if same_name.run_id != run.run_id:
        changed.append(f"the architecture changed from {same_name.run_id} to {run.run_id}")
    return changed or reasons


def same_weights(chain: Chain) -> Run | None:
    """A finished run whose weights this generation would only reproduce; None when it is trained itself already.

    It has the same images, architecture, settings and seed, and was trained from scratch and bit-reproducibly.
    """
    run, config, record = chain.run(), chain.config, chain.source_record()
    if record is None or chain.source_changed(record):  # whose images are not known yet
        return None
    fresh = not (config.training.init_from or config.retrain.warm_start)
    if run is None or not fresh or (run.stage("train") / MANIFEST).exists():
        return None
    chain.workspace.storage.refresh_matching(f"runs/{run.dataset_id}/{run_id(config.architecture)}*", RUN_FOLDERS)
    for other in reversed(run.generations()):
        if generation_seed(other.generation) is None and not chain.problems("train", other.stage("train")):
            train = manifest.read(other.stage("train"))
            if train and _would_repeat(train, config):
                return other
    return None


def subject(chain: Chain) -> Chain:
    """The chain of the run that a generation is: its own, or one whose weights its training would only repeat."""
    twin = same_weights(chain)
    return dataclasses.replace(chain, generation=twin.generation) if twin else chain


def next_due(chain: Chain, today: datetime.date) -> tuple[str, datetime.date, list[str]]:
    """The generation that `Retrain` makes next, from when on, and why, if it is due today.

    `chain` is without a generation.
    """
    every, name = chain.given.retrain.every, periods.name(chain.given.retrain.every, today)
    given = with_generation_seed(chain.given, name)
    reasons = why_due(subject(dataclasses.replace(chain, given=given, generation=name)))
    if reasons:
        return name, today, reasons
    start = periods.next_start(every, today)
    return periods.name(every, start), start, []


def _would_repeat(train: dict[str, Any], config: Config) -> bool:
    """True when the configuration would train the very same weights, started from scratch."""
    details = train["details"]
    from_scratch = [segment.get("how") for segment in details.get("segments", [])][:1] == ["started"]
    same_settings = trained_epochs(train) == config.training.epochs and not config_changes(train, config)
    return details.get("exact") is True and from_scratch and same_settings


# --- what it starts from ------------------------------------------------------------------------------------------


def plain_run(chain: Chain) -> Entry | None:
    """The finished run without a generation, which counts as current before the first generation.

    That of the same images and architecture, else the newest of the same names. None when none is there as a whole, or
    the chain is without a generation itself.
    """
    run = chain.run()
    if run is None or not run.generation:
        return None
    same = f"runs/{run.dataset_id}/{run_id(chain.config.architecture)}"
    made = [each for each in _trained(chain.workspace, chain.config) if not each[0].generation]
    made.sort(key=lambda each: (each[0].place == same, each[1]["created"]), reverse=True)
    entries = (registry.entry_of(plain, "") for plain, _ in made)
    return next((entry for entry in entries if entry and not registry.problems(chain.workspace, entry)), None)


def warm_start(chain: Chain) -> tuple[Path | None, str]:
    """The weights that a warm start of this generation begins with, or None, and a line about them for the log."""
    named = chain.generation and generation_seed(chain.generation) is None
    if not named or not chain.config.retrain.warm_start:
        return None, ""
    current = registry.read(chain.workspace.current(chain.config)) or plain_run(chain)
    if current is None:
        return None, "warm start: there is no current model yet, training from scratch"
    if current.architecture != chain.config.fingerprint:
        return None, f"warm start: {current.run} is of another architecture, training from scratch"
    if problems := registry.problems(chain.workspace, current):
        return None, f"warm start: {'; '.join(problems)}, training from scratch"
    run = registry.run_at(chain.workspace, current.run)
    return run.stage("train") / "model.params", f"warm start from the current model, {current.run}"
