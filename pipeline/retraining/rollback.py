"""Changing by hand which model is current: back to an earlier generation, or none at all.

Replaces the pointer of the registry, or moves it to the trash; the runs stay where they are.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.errors import PipelineError
from pipeline.files import now
from pipeline.retraining import generations, registry, served, trash
from pipeline.retraining.registry import Entry, Pointer
from pipeline.workspace import Workspace, events
from pipeline.workspace.freshness import Chain


def roll_back(chain: Chain, to: str = "") -> tuple[Entry, Entry]:
    """Make the run before the current one current again, or the generation `to`; gives the old and the new entry.

    The gate does not promote the run that was current again, until somebody rolls back to it. Raises `PipelineError`
    when there is nothing to roll back to, or `to` is current already.
    """
    path = chain.workspace.current(chain.config)
    seen = registry.read(path)
    with registry.held(chain.workspace, path):
        old = registry.read(path)
        if old is None:
            raise PipelineError(f"{path}: nothing was promoted yet, so there is nothing to roll back")
        if seen and seen.run != old.run and not to:
            raise PipelineError(f"{old.run} has become current meanwhile; run Rollback again to roll that back")
        was = None if to else served.withdrawn(chain.workspace, path, old)
        if was is not None:  # a roll back was killed before it was done
            new = old.entry
        else:
            was = old.entry
            new = msgspec.structs.replace(_named(chain, to) if to else _former(chain, old), since=now())
            if (new.run, new.weights_sha256) == (old.run, old.weights_sha256):
                served.serve(chain.workspace, path)  # which one that was killed may not have done
                raise PipelineError(f"--to {to}: it is current already")
            served.exported(chain.workspace, new)  # raises when it cannot be served
            if new.run in (old.run, *old.rolled_back):
                registry.set_current(path, new)
            else:
                registry.withdraw(path, new)
        told = {"run": new.run, "generation": new.generation, "accuracy": new.accuracy, "before": was.run}
        events.record(chain.workspace, "rolled back", **registry.about(chain), **told)
        served.serve(chain.workspace, path)
    events.publish(chain.workspace)
    return was, new


def former(workspace: Workspace, pointer: Pointer) -> tuple[Entry | None, list[str]]:
    """Where a roll back goes: the newest former model with other weights whose files are still there.

    Also why it passes over newer ones.
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
    if entry is None:
        why = "; ".join(reasons) or "no other generation was current before (--to NAME takes any finished one)"
        raise PipelineError(f"cannot roll back from {old.run}: {why}; it stays current")
    return entry


def _named(chain: Chain, name: str) -> Entry:
    """The trained and evaluated generation of this name or place; the run without one goes by its folder's name."""
    made = generations.find(chain.workspace, chain.config)
    found = [item.run for item in made if name in (item.name, item.run.place)]
    if not found:
        known = ", ".join(generations.labels(made)) or "none"
        back = trash.hint(chain.workspace, name)
        raise PipelineError(f"--to {name}: no finished generation has this name; there are: {known}{back}")
    if len(found) > 1:  # of a folder of images that changed within a period
        raise PipelineError(f"--to {name}: several have this name; give one of {', '.join(run.place for run in found)}")
    (run,) = found
    entry = registry.entry_of(run, run.generation)
    if entry is None:
        raise PipelineError(f"--to {name}: {run.place} is not evaluated; choose another one")
    if problems := registry.problems(chain.workspace, entry):
        raise PipelineError(f"--to {name}: {'; '.join(problems)}; choose another one, or restore its files")
    return entry


def retire(workspace: Workspace, name: str) -> Path:
    """Move a pointer to the trash: no model is current under `name` (`<data name>/<architecture name>`) any more.

    Returns the pointer's path in the trash. Raises `PipelineError` when no model is current under this name.
    """
    pointers = {registry.name_of(path): path for path in registry.pointers(workspace)}
    if name not in pointers:
        known = ", ".join(pointers) or "none"
        raise PipelineError(f"--name {name}: no model is current under this name; there are: {known}")
    path = pointers[name]
    target = workspace.in_trash(path)
    with registry.held(workspace, path):
        served.remove(workspace, path)  # first: killed in between, this command can be run again
        workspace.move(path, target)
    data, architecture = name.split("/")
    events.record(workspace, "retired", dataset=data, architecture=architecture, to=workspace.shown(target))
    events.publish(workspace)
    return target
