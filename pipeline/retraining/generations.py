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

from pipeline.config import Config
from pipeline.errors import AlreadyRunning, PipelineError, from_os_error
from pipeline.files import now, read_json
from pipeline.retraining import registry, trash
from pipeline.retraining.registry import Entry, Pointer
from pipeline.workspace import MANIFEST, RUN_FOLDERS, Run, Workspace, events, generation_seed, manifest, run_id
from pipeline.workspace.freshness import Chain, config_changes, trained_epochs

#: The stages of a generation, in order; the gate comes before the report, which tells its decision.
STAGES = ("dataset", "train", "evaluate", "export", "promote", "report")

#: What the gate decides.
PROMOTED, REFUSED = "promoted", "refused"

#: Its reason when there is no current model to compare with.
FIRST_MODEL = "first model"


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


def period(name: str) -> tuple[datetime.date, datetime.date] | None:
    """The first and the last day of the period that a generation is named after; None for any other name."""
    found = re.fullmatch(r"(\d{4})-(?:W(\d\d)|(\d\d)(?:-(\d\d))?)", name)
    if found is None:
        return None
    year, week, month, day = (int(part) if part else 0 for part in found.groups())
    try:
        first = datetime.date.fromisocalendar(year, week, 1) if week else datetime.date(year, month, day or 1)
        every = "week" if week else "day" if day else "month"
        return first, next_start(every, first) - datetime.timedelta(days=1)
    except (ValueError, OverflowError):
        return None


def is_older(name: str, than: str) -> bool:
    """True when the period of one generation was over before that of the other began, whatever their lengths."""
    one, other = period(name), period(than)
    return one is not None and other is not None and one[1] < other[0]


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
    """A generation whose training is finished. `outcome` is the gate's, or "" when it has not decided yet.

    The run without a generation counts from when it was current; its name is that of its folder.
    """

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
        names = f"{config.data.name}-*", f"{config.architecture.name}-*"
        workspace.mirror.know_runs(*names, ("train", "evaluate", "promote"))
    data, architecture = re.escape(config.data.name), re.escape(config.architecture.name)
    pattern = re.compile(rf"{data}-[0-9a-f]{{8}}/{architecture}-[0-9a-f]{{8}}(@.+)?")
    promoted = registry.ever(workspace.current(config))
    found = []
    for folder in sorted(workspace.runs.glob("*/*")):
        run = workspace.run(folder.parent.name, folder.name)
        wanted = pattern.fullmatch(f"{run.dataset_id}/{run.run_id}") and generation_seed(run.generation) is None
        train = manifest.read(run.stage("train")) if wanted else None
        if train is None:
            continue
        outcome = (decision(run) or {}).get("outcome", "")
        if not run.generation and not outcome:
            if run.place not in promoted:
                continue
            outcome = PROMOTED
        evaluate = manifest.read(run.stage("evaluate"))
        accuracy = evaluate["details"].get("accuracy") if evaluate else None
        found.append(Generation(run.generation or run.run_id, run, train["created"], accuracy, outcome))
    return sorted(found, key=lambda item: (item.trained, item.name), reverse=True)


def same_weights(chain: Chain) -> Run | None:
    """A finished training that training this generation would only repeat, to the same weights.

    Same images, architecture, settings and seed, from scratch and undisturbed. None when this generation is trained
    already.
    """
    run, config = chain.run(), chain.config
    if (
        run is None
        or config.training.init_from
        or config.retrain.warm_start
        or run.stage("train").joinpath(MANIFEST).exists()
    ):
        return None
    if chain.workspace.mirror:
        chain.workspace.mirror.know_runs(run.dataset_id, f"{run_id(config.architecture)}*", RUN_FOLDERS)
    for other in reversed(run.generations()):
        if generation_seed(other.generation) is not None or chain.problems("train", other.stage("train")):
            continue
        train = manifest.read(other.stage("train"))
        assert train is not None
        details, segments = train["details"], train["details"].get("segments") or [{}]
        fresh = segments[0].get("how") == "started" and details.get("exact") is True
        if fresh and trained_epochs(train) == config.training.epochs and not config_changes(train, config):
            return other
    return None


def first(chain: Chain) -> Entry | None:
    """The run without a generation, of this architecture and these images, as what was current before the first one.

    None when it is not there as a whole, or is the chain's own.
    """
    run = chain.run()
    if run is None or not run.generation:
        return None
    plain = chain.workspace.run(run.dataset_id, run_id(chain.config.architecture))
    if chain.workspace.mirror:
        chain.workspace.mirror.know_folders([plain.stage("train"), plain.stage("evaluate")])
    entry = registry.entry_of(plain, "")
    return entry if entry and not registry.problems(chain.workspace, entry) else None


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


def verdict(decision: dict[str, Any]) -> str:
    """The gate's decision in words: `promoted (first model)`, or with what it was compared with."""
    outcome, reason = decision.get("outcome"), decision.get("reason")
    return f"{outcome} ({reason})" if reason == FIRST_MODEL else f"{outcome}: {reason}"


def warm_start(chain: Chain) -> tuple[Path | None, str]:
    """The weights that a warm start of this generation begins with, or None, and a line that says so."""
    named = chain.generation and generation_seed(chain.generation) is None
    if not named or not chain.config.retrain.warm_start:
        return None, ""
    pointer = registry.read(chain.workspace.current(chain.config)) or first(chain)
    if pointer is None:
        return None, "warm start: there is no current model yet, training from scratch"
    if pointer.architecture != chain.config.fingerprint:
        return None, f"warm start: {pointer.run} is of another architecture, training from scratch"
    problems = registry.problems(chain.workspace, pointer)
    if problems:
        return None, f"warm start: {'; '.join(problems)}, training from scratch"
    run = registry.run_of(chain.workspace, pointer)
    return run.stage("train") / "model.params", f"warm start from the current model, {pointer.run}"


# --- roll back -----------------------------------------------------------------------------------------------------


def roll_back(chain: Chain, to: str = "") -> tuple[Entry, Entry]:
    """Make the run before the current one current again, or the generation `to`; gives the old and the new entry.

    The run that was current is remembered as rolled back: the gate does not promote it again. Going to one that was
    rolled back itself undoes that. Raises `PipelineError` when there is nothing to go to.
    """
    started = time.monotonic()
    path = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, path):
        old = registry.read(path)
        if old is None:
            raise PipelineError(f"{path}: nothing was promoted yet, so there is nothing to roll back")
        entry = _named(chain, to) if to else _former(chain, old)
        entry = msgspec.structs.replace(entry, since=now())
        if entry.run in old.rolled_back:
            registry.set_current(path, entry)
        elif entry.run != old.run:
            registry.withdraw(path, entry)
    told = {"run": entry.run, "generation": entry.generation, "accuracy": entry.accuracy, "before": old.run}
    seconds = round(time.monotonic() - started, 3)
    events.record(chain.workspace, "rolled back", **registry.about(chain), **told, seconds=seconds)
    events.publish(chain.workspace)
    return old.entry, entry


def former(workspace: Workspace, pointer: Pointer) -> tuple[Entry | None, list[str]]:
    """Where a roll back goes: the newest former current run of other weights that is still there as it was.

    Also, in words, why those that it passes over are none.
    """
    reasons = []
    for entry in pointer.before:
        if entry.weights_sha256 == pointer.weights_sha256:
            reasons.append(f"{entry.run} has the very same weights")
        elif problems := registry.problems(workspace, entry):
            reasons += [problem + trash.hint(workspace, entry.run) for problem in problems]
        else:
            return entry, reasons
    return None, reasons


def _former(chain: Chain, old: Pointer) -> Entry:
    entry, reasons = former(chain.workspace, old)
    if entry is not None:
        return entry
    why = "; ".join(reasons) or "no other generation was current before (--to NAME takes any finished one)"
    raise PipelineError(f"cannot roll back from {old.run}: {why}; it stays current")


def _named(chain: Chain, name: str) -> Entry:
    """The newest trained and evaluated generation of this name; the run without one goes by its folder's name."""
    made = find(chain.workspace, chain.config)
    entry = next((registry.entry_of(item.run, item.run.generation) for item in made if item.name == name), None)
    if entry is None:
        known = ", ".join(item.name for item in made) or "none"
        back = trash.hint(chain.workspace, name)
        raise PipelineError(f"--to {name}: there is no finished generation of this name; there are: {known}{back}")
    problems = registry.problems(chain.workspace, entry)
    if problems:
        raise PipelineError(f"--to {name}: {'; '.join(problems)}; choose another one, or restore its files")
    return entry


def retire(workspace: Workspace, name: str) -> Path:
    """Move a pointer to the trash: no model is current under `name` (`<data name>/<architecture name>`) any more.

    Its runs stay where they are. Gives where the pointer is now; raises `PipelineError` when there is none.
    """
    path = next((path for path in retirable(workspace) if registry.name_of(path) == name), None)
    if path is None:
        known = ", ".join(registry.name_of(path) for path in retirable(workspace)) or "none"
        raise PipelineError(f"--name {name}: no model is current under this name; there are: {known}")
    target = trash.target(workspace, path)
    try:
        with registry.held(workspace, path):
            workspace.move(path, target)
    except OSError as error:
        raise from_os_error(error, "move the pointer to the trash") from error
    data, architecture = name.split("/")
    events.record(workspace, "retired", dataset=data, architecture=architecture, to=workspace.shown(target))
    events.publish(workspace)
    return target


def retirable(workspace: Workspace) -> list[Path]:
    """The pointers to all current models of the workspace."""
    if workspace.mirror:
        workspace.mirror.know_currents()
    return workspace.currents()


# --- retention ----------------------------------------------------------------------------------------------------


def superfluous(chain: Chain, keep: int) -> list[Generation]:
    """The generations that can go.

    What stays: the newest `keep` of those that the gate promoted and nobody rolled back, the current one, the one that
    a roll back goes to, any not decided about yet; and the newest one, which a timer would otherwise make again.
    """
    pointer = registry.read(chain.workspace.current(chain.config))
    made = find(chain.workspace, chain.config)
    rejected = pointer.rolled_back if pointer else []
    good = [item for item in made if item.outcome == PROMOTED and item.run.place not in rejected]
    latest = sorted(made, key=lambda item: period(item.name) or (datetime.date.min, datetime.date.min))[-1:]
    stay = {item.run.place for item in [*good[:keep], *made[:1], *latest]}
    if pointer:
        target, _ = former(chain.workspace, pointer)
        stay |= {entry.run for entry in (pointer, target) if entry}
    return [item for item in made if item.outcome and item.run.generation and item.run.place not in stay]


def prune(chain: Chain, generations: list[Generation]) -> tuple[list[str], list[str]]:
    """Move generations to the trash; gives where they went, and lines about those that cannot be moved now."""
    workspace, moved, left = chain.workspace, [], []
    path = workspace.current(chain.config)
    with registry.held(workspace, path):  # nobody makes one of them current meanwhile
        pointer = registry.read(path)
        for item in generations:
            started, size = time.monotonic(), workspace.size_of(item.run.root)
            target = trash.target(workspace, item.run.root)
            if pointer and pointer.run == item.run.place:
                left.append(f"generation {item.name} has become the current one")
                continue
            try:
                with trash.whole_run(item.run, f"generation {item.name}"):
                    workspace.move(item.run.root, target)
            except AlreadyRunning as error:
                left.append(str(error))
                continue
            except OSError as error:
                raise from_os_error(error, "move a generation to the trash") from error
            moved.append(workspace.shown(target))
            events.record(
                workspace,
                "pruned",
                **registry.about(chain),
                run=item.run.place,
                generation=item.name,
                bytes=size,
                to=workspace.shown(target),
                seconds=round(time.monotonic() - started, 3),
            )
    events.publish(workspace)
    return moved, left
