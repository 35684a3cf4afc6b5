"""The trash of a workspace: what was set aside, pruned or retired, under its former path, and how to restore it.

`trash/<when>/<path in the workspace>`. Nothing here deletes a file: `deletion` does, of what has been here for long.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.retraining import registry, served
from pipeline.storage import LOCAL, locks
from pipeline.workspace import RUN_FOLDERS, Run, Workspace, events
from pipeline.workspace.freshness import Chain, all_upstream

#: The name of a folder in the trash: when its content was moved there.
WHEN = "%Y-%m-%dT%H%M%SZ"

_WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")

#: How many parts the path of an item has: of a run, a data set, a pointer to a current model.
_DEPTHS = {"runs": 3, "datasets": 2, "current": 3}


@dataclass(frozen=True)
class Item:
    """One item in the trash. `place` is its former path in the workspace."""

    place: str
    when: str
    path: Path

    def is_named(self, name: str) -> bool:
        """True when `name` is its path, a part of that, its generation, or the path with the time before it."""
        parts = self.place.split("/")
        paths = (self.place, f"{self.when}/{self.place}")
        return name in (*paths, *parts, Path(parts[-1]).stem) or parts[-1].endswith(f"@{name}")


def finished(chain: Chain, stage: str) -> Path:
    """The folder of a finished stage; raises `WorkspaceError` when there is none."""
    folder = chain.folder(stage)
    if folder is None or not folder.exists():
        raise WorkspaceError(f"there is no finished {stage} of {chain.run_id} to set aside")
    return folder


def set_aside(chain: Chain, stage: str, target: Path) -> None:
    """Move a finished stage to `target` in the trash, unless somebody writes it or, within its run, reads it."""
    workspace, what = chain.workspace, f"{stage} {chain.run_id}"
    folder, run = finished(chain, stage), chain.run()
    with contextlib.ExitStack() as held:
        if stage == "dataset" or run is None:
            for name in (workspace.source_pointer(chain.config.data).stem, folder.name):
                held.enter_context(workspace.hold(workspace.lock(name), what))
            held.enter_context(locks.hold(workspace.readers_lock(folder.name), what, wait=False))
        else:
            for each in (stage, *(each for each in RUN_FOLDERS if stage in all_upstream(each))):
                held.enter_context(workspace.hold(run.lock(each), what))
            if stage == "train":
                held.enter_context(locks.hold(run.job_lock, what, wait=False))
                _set_checkpoints_aside(run, workspace.trash / target.relative_to(workspace.trash).parts[0])
        workspace.move(folder, target)
    events.record(workspace, "set aside", stage=stage, run=chain.run_id, to=workspace.shown(target))
    events.publish(workspace)


def _set_checkpoints_aside(run: Run, moment: Path) -> None:
    """Move them to the same folder `trash/<when>` as the training, or the next one would resume from them."""
    target = moment / run.checkpoints.relative_to(run.workspace.root)
    for storage in (run.workspace.storage, LOCAL):
        storage.refresh([run.checkpoints])
        if storage.exists(run.checkpoints):
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.move(run.checkpoints, target)


def items(workspace: Workspace) -> list[Item]:
    """What is in the trash, newest first."""
    found = set()
    for when, *rest in _paths(workspace):
        depth = _DEPTHS.get(rest[0], 0) if rest else 0
        hidden = any(part.startswith(".") for part in rest[:depth])
        if _WHEN.fullmatch(when) and 0 < depth <= len(rest) and not hidden:
            found.add((when, "/".join(rest[:depth])))
    return [Item(place, when, workspace.trash / when / place) for when, place in sorted(found, reverse=True)]


def moments(workspace: Workspace) -> list[str]:
    """The folders of the trash, by name; one that begins with a dot was left by a deletion that was killed."""
    return sorted({parts[0] for parts in _paths(workspace) if _WHEN.fullmatch(parts[0].lstrip("."))})


def unknown(workspace: Workspace) -> list[str]:
    """What else is in the trash, by name: people and earlier versions did not note where things came from."""
    return sorted({parts[0] for parts in _paths(workspace) if not _WHEN.fullmatch(parts[0].lstrip("."))})


def hint(workspace: Workspace, name: str) -> str:
    """How to restore `name`, for the end of a message; empty when it is not in the trash."""
    if not any(item.is_named(name) for item in items(workspace)):
        return ""
    return f"; it is in the trash: `Restore --item {name} --confirm` restores it"


def restore(workspace: Workspace, item: Item) -> list[str]:
    """Move an item back to where it was; gives its places, of a run one for each stage.

    Raises `WorkspaceError` when something else is there now.
    """
    moment = workspace.trash / item.when
    moves = {part: workspace.root / part.relative_to(moment) for part in _parts(workspace, item)}
    with _locked(workspace, item):
        places = {path for goal in moves.values() for path in (goal.parent, goal)}
        workspace.storage.refresh(places, since=time.monotonic())
        if taken := [goal for goal in moves.values() if workspace.storage.exists(goal)]:
            there, first = ", ".join(workspace.shown(goal) for goal in taken), "set it aside"
            if item.place.startswith("current/"):
                first = f"Retire --name {registry.name_of(Path(item.place))} --confirm"
            raise WorkspaceError(f"{there}: already exists; {first} first, then restore {item.when}/{item.place}")
        for part, goal in moves.items():
            workspace.move(part, goal)
        if item.place.startswith("current/"):
            served.try_to_serve(workspace, workspace.root / item.place)
    for part in moves:
        _remove_empty(workspace, part.parent)
    return [workspace.shown(goal) for goal in moves.values()]


def contents(workspace: Workspace, item: Item) -> list[str]:
    """The names of the stages of a run that are there; of anything else its own name."""
    return [part.name for part in _parts(workspace, item)]


def _locked(workspace: Workspace, item: Item) -> contextlib.AbstractContextManager[object]:
    """The lock of the place that an item returns to."""
    kind, name = item.place.split("/")[:2]
    if kind == "current":
        return registry.held(workspace, workspace.root / item.place)
    if kind == "runs":
        run = registry.run_at(workspace, item.place)
        return whole_run(run, f"the restoring of {run.run_id}")
    return workspace.hold(workspace.lock(name), f"the restoring of {name}")


def _remove_empty(workspace: Workspace, folder: Path) -> None:
    """Remove a folder and those above it, up to the trash, as far as they are empty."""
    with contextlib.suppress(OSError):
        while folder != workspace.trash:
            if folder.exists():
                folder.rmdir()
            folder = folder.parent


@contextlib.contextmanager
def whole_run(run: Run, what: str) -> Iterator[None]:
    """Hold the locks of all stages of a run, which read each other's files; raises `AlreadyRunning`."""
    with contextlib.ExitStack() as held:
        for stage in RUN_FOLDERS:
            held.enter_context(run.workspace.hold(run.lock(stage), what))
        held.enter_context(locks.hold(run.job_lock, what, wait=False))
        yield


def _paths(workspace: Workspace) -> list[tuple[str, ...]]:
    """Every file in the trash, by the parts of its path there."""
    workspace.storage.refresh([workspace.trash])
    return [tuple(path.split("/")) for path in workspace.storage.files(workspace.trash)]


def _parts(workspace: Workspace, item: Item) -> list[Path]:
    """What is moved back: of a run each stage, as other stages may still be in place."""
    if not item.place.startswith("runs/"):
        return [item.path]
    names = {path.partition("/")[0] for path in workspace.storage.files(item.path)}
    parts = [item.path / name for name in sorted(names)]
    run = registry.run_at(workspace, item.place)
    kept = workspace.trash / item.when / run.checkpoints.relative_to(workspace.root)
    return [*parts, kept] if "train" in names and workspace.storage.exists(kept) else parts
