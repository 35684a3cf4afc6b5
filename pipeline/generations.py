"""Generations: how they are named, whether one is due, which ones there are, which ones can go.

Reads manifests; `prune` moves folders to the workspace's trash, `roll_back` moves the pointer. Imports nothing heavy:
a timer that finds nothing due must be done in a moment.
"""

from __future__ import annotations

import datetime
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline import current, events, locks, manifest
from pipeline.chain import Chain
from pipeline.config import Config
from pipeline.current import Entry, Pointer
from pipeline.errors import AlreadyRunning, PipelineError, from_os_error
from pipeline.files import read_json
from pipeline.workspace import Run, Workspace, generation_seed

#: The stages of a generation, in order; the gate comes before the report, which tells its decision.
STAGES = ("dataset", "train", "evaluate", "export", "promote", "report")


def today() -> datetime.date:
    """The present day in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date()


def name(every: str, day: datetime.date) -> str:
    """The generation that `day` belongs to: `2026-11-25`, `2026-W48` (ISO 8601 week), `2026-11`."""
    if every == "day":
        return day.isoformat()
    if every == "month":
        return f"{day:%Y-%m}"
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"


def next_start(every: str, day: datetime.date) -> datetime.date:
    """The first day of the period after the one that `day` belongs to. Weeks start on Monday."""
    if every == "day":
        return day + datetime.timedelta(days=1)
    if every == "month":
        return (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    return day + datetime.timedelta(days=7 - day.weekday())


def unfinished(chain: Chain) -> list[str]:
    """Why the generation of `chain` does not count as made; empty when it is, whatever the gate said of it.

    Unlike `Chain.why`, raised epochs are no reason: a finished generation stays what it is, the next one has them.
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
    """In words, why the generation of `chain` has to be made; empty when it need not be."""
    reasons = unfinished(chain)
    run = chain.run()
    if not reasons or run is None or run.stage("train").exists():
        return reasons
    made = find(chain.workspace, chain.config)
    same_name = next((item for item in made if item.name == chain.generation), None)
    if same_name is None:
        return [f"there is no generation {chain.generation} yet"]
    changed = []
    if same_name.run.dataset_id != run.dataset_id:
        changed.append(f"the data set changed from {same_name.run.dataset_id} to {run.dataset_id}")
    if same_name.run.run_id != run.run_id:
        changed.append(f"the architecture changed from {same_name.run.run_id} to {run.run_id}")
    return changed or reasons


@dataclass(frozen=True)
class Generation:
    """A generation whose training is finished. `outcome` is the gate's, or "" when it has not decided yet."""

    name: str
    run: Run
    trained: str
    accuracy: float | None
    outcome: str


def find(workspace: Workspace, config: Config) -> list[Generation]:
    """The trained generations of this architecture and data set (both by name), newest first.

    Repetitions of a training with another seed are none.
    """
    if workspace.mirror:
        names = f"{config.data.name}-*", f"{config.architecture.name}-*@*"
        workspace.mirror.know_runs(*names, ("train", "evaluate", "promote"))
    data, architecture = re.escape(config.data.name), re.escape(config.architecture.name)
    pattern = re.compile(rf"{data}-[0-9a-f]{{8}}/{architecture}-[0-9a-f]{{8}}@.+")
    found = []
    for folder in sorted(workspace.runs.glob("*/*@*")):
        run = workspace.run(folder.parent.name, folder.name)
        wanted = pattern.fullmatch(f"{run.dataset_id}/{run.run_id}") and generation_seed(run.generation) is None
        train = manifest.read(run.stage("train")) if wanted else None
        if train is None:
            continue
        evaluate = manifest.read(run.stage("evaluate"))
        accuracy = evaluate["details"].get("accuracy") if evaluate else None
        outcome = (decision(run) or {}).get("outcome", "")
        found.append(Generation(run.generation, run, train["created"], accuracy, outcome))
    return sorted(found, key=lambda item: (item.trained, item.name), reverse=True)


def previous(run: Run, train: dict[str, Any]) -> Run | None:
    """The newest generation that was begun before this run (`train` is its manifest).

    The same training with another seed is none.
    """
    if generation_seed(run.generation) is not None:
        return None
    found = []
    for other in run.generations():
        before = manifest.read(other.stage("train"))
        if before is None or generation_seed(other.generation) is not None:
            continue
        if _begun(before) < _begun(train):
            found.append((_begun(before), other.run_id, other))
    return max(found)[2] if found else None


def _begun(train: dict[str, Any]) -> str:
    """When a training was begun; going on with it later does not make it a newer generation."""
    segments = train["details"].get("segments")
    return segments[0]["started"] if segments else train["created"]


def decision(run: Run) -> dict[str, Any] | None:
    """What the promotion gate decided about a run, or None while it has not."""
    if manifest.read(run.stage("promote")) is None:
        return None
    value = read_json(run.stage("promote") / "decision.json")
    return value if isinstance(value, dict) else None


def warm_start(chain: Chain) -> tuple[Path | None, str]:
    """The weights that a warm start of this generation begins with, or None, and a line that says so."""
    named = chain.generation and generation_seed(chain.generation) is None
    if not named or not chain.config.schedule.warm_start:
        return None, ""
    pointer = current.read(chain.workspace.current(chain.config))
    if pointer is None:
        return None, "warm start: there is no current model yet, training from scratch"
    if pointer.architecture != chain.config.fingerprint:
        return None, f"warm start: {pointer.run} is of another architecture, training from scratch"
    problems = current.problems(chain.workspace, pointer)
    if problems:
        return None, f"warm start: {'; '.join(problems)}, training from scratch"
    run = current.run_of(chain.workspace, pointer)
    return run.stage("train") / "model.params", f"warm start from the current model, {pointer.run}"


# --- roll back -----------------------------------------------------------------------------------------------------


def roll_back(chain: Chain, to: str = "") -> tuple[Entry, Entry]:
    """Make the run before the current one current again, or the generation `to`; gives the old and the new entry.

    The run that was current is remembered as rolled back: the gate does not promote it again. Raises
    `PipelineError` when there is nothing to go to.
    """
    started = time.monotonic()
    path = chain.workspace.current(chain.config)
    with current.held(chain, wait=True):
        old = current.read(path)
        if old is None:
            raise PipelineError(f"{path}: nothing was promoted yet, so there is nothing to roll back")
        entry = _named(chain, to) if to else _former(chain, old)
        entry = msgspec.structs.replace(entry, since=manifest.now())
        current.withdraw(path, entry)
    told = {"run": entry.run, "generation": entry.generation, "accuracy": entry.accuracy, "before": old.run}
    seconds = round(time.monotonic() - started, 3)
    events.record(chain.workspace, "rolled back", **current.about(chain), **told, seconds=seconds)
    return old.entry, entry


def _former(chain: Chain, old: Pointer) -> Entry:
    """The newest former current run that is still there as it was."""
    reasons = []
    for entry in old.before:
        problems = current.problems(chain.workspace, entry)
        if not problems:
            return entry
        reasons += problems
    why = "; ".join(reasons) or "no other generation was current before (--to NAME takes any finished one)"
    raise PipelineError(f"cannot roll back from {old.run}: {why}; it stays current")


def _named(chain: Chain, name: str) -> Entry:
    """The newest trained and evaluated generation of this name."""
    made = find(chain.workspace, chain.config)
    entry = next((current.entry_of(item.run, name) for item in made if item.name == name), None)
    if entry is None:
        known = ", ".join(item.name for item in made) or "none"
        raise PipelineError(f"--to {name}: there is no finished generation of this name; there are: {known}")
    problems = current.problems(chain.workspace, entry)
    if problems:
        raise PipelineError(f"--to {name}: {'; '.join(problems)}; choose another one, or restore its files")
    return entry


# --- retention ----------------------------------------------------------------------------------------------------


def superfluous(chain: Chain, keep: int) -> list[Generation]:
    """The generations that can go: all but the newest `keep`, the current one, and any not decided about yet."""
    pointer = current.read(chain.workspace.current(chain.config))
    rest = find(chain.workspace, chain.config)[keep:]
    return [item for item in rest if item.outcome and not (pointer and item.run.place == pointer.run)]


def prune(chain: Chain, generations: list[Generation]) -> tuple[list[str], list[str]]:
    """Move generations to the trash; gives where they went, and lines about those that are being worked on."""
    moved, left = [], []
    for item in generations:
        started, size = time.monotonic(), chain.workspace.size_of(item.run.root)
        stamp = manifest.now().replace(":", "")
        target = chain.workspace.trash / f"{stamp}-{item.run.dataset_id}-{item.run.run_id}"
        try:
            what, mirror = f"generation {item.name}", chain.workspace.mirror
            lock = locks.hold(item.run.lock("train"), what, False, mirror=mirror)
            with lock, locks.hold(item.run.job_lock, what, False):
                chain.workspace.move(item.run.root, target)
        except AlreadyRunning as error:
            left.append(str(error))
            continue
        except OSError as error:
            raise from_os_error(error, "move a generation to the trash") from error
        moved.append(chain.workspace.shown(target))
        events.record(
            chain.workspace,
            "pruned",
            **current.about(chain),
            run=item.run.place,
            generation=item.name,
            bytes=size,
            to=chain.workspace.shown(target),
            seconds=round(time.monotonic() - started, 3),
        )
    return moved, left
