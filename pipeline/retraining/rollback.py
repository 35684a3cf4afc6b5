"""Change the current model by hand: roll back to an earlier generation, or retire a model. The runs stay in place."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.errors import PipelineError
from pipeline.files import now
from pipeline.retraining import generations, registry, served, trash
from pipeline.retraining.registry import Entry, Pointer
from pipeline.workspace import Workspace, events
from pipeline.workspace.freshness import Chain


def roll_back(chain: Chain, to: str = "") -> tuple[Entry | None, Entry]:
    """Make the previous model current again, or the generation `to`. Returns the old entry, if any, and the new one.

    After a step back, the gate does not promote the old one again until somebody rolls back to it. Raises
    `PipelineError` if there is nothing to roll back to, or if `to` is already current.
    """
    path = chain.workspace.current(chain.config)
    seen = registry.read(path)
    with registry.held(chain.workspace, path):
        old = registry.read(path)
        if old is None and not to:
            raise PipelineError(f"{path}: nothing is current, so there is nothing to roll back (--to NAME chooses one)")
        if seen and old and seen.run != old.run and not to:
            raise PipelineError(f"{old.run} has become current in the meantime; run Rollback again to roll it back")
        was = None if to or old is None else served.still_served(chain.workspace, path, old)
        if was and old:  # an earlier rollback was killed halfway
            new = old.entry
        else:
            was = old.entry if old else None
            new = msgspec.structs.replace(_previous(chain, old) if old and not to else _named(chain, to), since=now())
            if old and (new.run, new.weights_sha256) == (old.run, old.weights_sha256):
                served.serve(chain.workspace, path)  # an earlier rollback may have been killed before this
                raise PipelineError(f"--to {to}: already current")
            served.exported(chain.workspace, new)  # raises if it cannot be served
            if old and any(former.run == new.run for former in old.before):
                registry.withdraw(path, new)
            else:  # never current, or rolled back before: a step forward, from which a rollback leads back here
                registry.set_current(path, new)
        served.serve(chain.workspace, path)
        before = was.run if was else None
        fields = {"run": new.run, "generation": new.generation, "accuracy": new.accuracy, "before": before}
        events.record(chain.workspace, "rolled back", **registry.event_fields(chain), **fields)
    events.publish(chain.workspace)
    return was, new


def rollback_target(workspace: Workspace, pointer: Pointer) -> tuple[Entry | None, list[str]]:
    """Find the newest former model that has other weights and all its files, and say why newer ones are skipped."""
    reasons = []
    for entry in pointer.before:
        if entry.weights_sha256 == pointer.weights_sha256:
            reasons.append(f"{entry.run} has the very same weights")
        elif problems := registry.problems(workspace, entry):
            reasons += [problem + trash.hint(workspace, entry.run) for problem in problems]
        else:
            return entry, reasons
    return None, reasons


def _previous(chain: Chain, old: Pointer) -> Entry:
    entry, reasons = rollback_target(chain.workspace, old)
    if entry is None:
        why = "; ".join(reasons) or "no other generation was current before (--to NAME takes any finished one)"
        raise PipelineError(f"cannot roll back from {old.run}: {why}; it stays current")
    return entry


def _named(chain: Chain, name: str) -> Entry:
    """Find a trained and evaluated generation by its name or path; a run without one goes by its folder's name."""
    made = generations.find(chain.workspace, chain.config)
    runs = [item.run for item in made if name in (item.name, item.run.place)]
    if not runs:
        known = ", ".join(generations.labels(made)) or "none"
        hint = trash.hint(chain.workspace, name)
        raise PipelineError(f"--to {name}: no finished generation has this name; known: {known}{hint}")
    if len(runs) > 1:  # a folder of images changed within a period
        raise PipelineError(f"--to {name}: several have this name; use one of {', '.join(run.place for run in runs)}")
    (run,) = runs
    entry = registry.entry_of(run)
    if entry is None:
        raise PipelineError(f"--to {name}: {run.place} is not evaluated; choose another one")
    if problems := registry.problems(chain.workspace, entry):
        raise PipelineError(f"--to {name}: {'; '.join(problems)}; choose another one, or restore its files")
    return entry


def retire(workspace: Workspace, name: str) -> Path:
    """Move the pointer `name` (`<data name>/<architecture name>`) to the trash, so that it has no current model.

    Returns the pointer's path in the trash. Raises `PipelineError` if no model is current under this name.
    """
    pointers = {registry.name_of(path): path for path in registry.pointers(workspace)}
    if name not in pointers:
        known = ", ".join(pointers) or "none"
        raise PipelineError(f"--name {name}: no model is current under this name; known: {known}")
    path = pointers[name]
    target = workspace.in_trash(path)
    with registry.held(workspace, path):
        served.remove(workspace, path)  # first, so that this command can be run again if it is killed
        workspace.move(path, target)
    data, architecture = name.split("/")
    events.record(workspace, "retired", dataset=data, architecture=architecture, to=workspace.shown(target))
    events.publish(workspace)
    return target
