"""The trash of a workspace: what was set aside, pruned or retired, and how to restore it.

Keeps everything under its former path: `trash/<when>/<path in the workspace>`. Only `deletion` deletes from it, by age.
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

#: Format of the folder names in the trash: when the content was moved there.
WHEN = "%Y-%m-%dT%H%M%SZ"

_WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")

#: Number of path parts of an item: a run, a data set, a pointer to a current model.
_DEPTHS = {"runs": 3, "datasets": 2, "current": 3}


@dataclass(frozen=True)
class Item:
    """An item in the trash. `place` is its former path in the workspace."""

    place: str
    when: str
    path: Path

    def is_named(self, name: str) -> bool:
        """Whether `name` is the item's generation, its path (also with `<when>/` before it), or one part of it."""
        parts = self.place.split("/")
        paths = (self.place, f"{self.when}/{self.place}")
        return name in (*paths, *parts, Path(parts[-1]).stem) or parts[-1].endswith(f"@{name}")


def existing(chain: Chain, stage: str) -> Path:
    """Return the folder of a stage, finished or not. Raises `WorkspaceError` if there is none."""
    folder = chain.folder(stage)
    if folder is None or not folder.exists():
        raise WorkspaceError(f"there is no {stage} of {chain.run_id} to set aside")
    return folder


def set_aside(chain: Chain, stage: str, target: Path) -> None:
    """Move a stage, finished or not, to `target` in the trash.

    Raises `AlreadyRunning` if another command is writing it, or is reading it for a stage of the same run.
    """
    workspace, what = chain.workspace, f"{stage} {chain.run_id}"
    folder, run = existing(chain, stage), chain.run()
    workspace.require_published(folder)
    with contextlib.ExitStack() as held:
        if stage == "dataset" or run is None:
            for name in (workspace.source_pointer(chain.config.data).stem, folder.name):
                held.enter_context(workspace.hold(workspace.lock(name), what))
            held.enter_context(locks.hold(workspace.readers_lock(folder.name), what, wait=False))
        else:
            for affected in (stage, *(name for name in RUN_FOLDERS if stage in all_upstream(name))):
                held.enter_context(workspace.hold(run.lock(affected), what))
            if stage == "train":
                held.enter_context(locks.hold(run.job_lock, what, wait=False))
                _set_checkpoints_aside(run, workspace.trash / target.relative_to(workspace.trash).parts[0])
        workspace.move(folder, target)
    events.record(workspace, "set aside", stage=stage, run=chain.run_id, to=workspace.shown(target))
    events.publish(workspace)


def _set_checkpoints_aside(run: Run, folder: Path) -> None:
    """Move a run's checkpoints to `folder` in the trash, or the next training would resume from them."""
    target = folder / run.checkpoints.relative_to(run.workspace.root)
    for storage in (LOCAL, run.workspace.storage):  # the second one deletes what is still here
        storage.refresh([run.checkpoints])
        if storage.exists(run.checkpoints):
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.move(run.checkpoints, target)


def items(workspace: Workspace) -> list[Item]:
    """Return the items in the trash, newest first."""
    found = set()
    for when, *rest in _paths(workspace):
        depth = _DEPTHS.get(rest[0], 0) if rest else 0
        hidden = any(part.startswith(".") for part in rest[:depth])
        if _WHEN.fullmatch(when) and 0 < depth <= len(rest) and not hidden:
            found.add((when, "/".join(rest[:depth])))
    return [Item(place, when, workspace.trash / when / place) for when, place in sorted(found, reverse=True)]


def folder_names(workspace: Workspace) -> list[str]:
    """Return the sorted names of the folders in the trash. A leading dot marks a deletion that was killed."""
    return sorted({parts[0] for parts in _paths(workspace) if _WHEN.fullmatch(parts[0].lstrip("."))})


def unknown(workspace: Workspace) -> list[str]:
    """Return the names of everything else in the trash, put there by users or earlier versions."""
    return sorted({parts[0] for parts in _paths(workspace) if not _WHEN.fullmatch(parts[0].lstrip("."))})


def hint(workspace: Workspace, name: str) -> str:
    """Return the end of a message that says how to restore `name`; empty if it is not in the trash."""
    if not any(item.is_named(name) for item in items(workspace)):
        return ""
    return f"; it is in the trash: restore it with `Restore --item {name} --confirm`"


def restore(workspace: Workspace, item: Item) -> list[str]:
    """Move an item back to where it was. Returns the restored paths: of a run, one for each stage.

    Raises `WorkspaceError` if something else is there now.
    """
    folder = workspace.trash / item.when
    moves = {part: workspace.root / part.relative_to(folder) for part in _parts(workspace, item)}
    with _hold_destination(workspace, item):
        paths = {path for target in moves.values() for path in (target.parent, target)}
        workspace.storage.refresh(paths, since=time.monotonic())
        if taken := [target for target in moves.values() if workspace.storage.exists(target)]:
            there, first = ", ".join(workspace.shown(target) for target in taken), "set it aside"
            if item.place.startswith("current/"):
                first = f"Retire --name {registry.name_of(Path(item.place))} --confirm"
            raise WorkspaceError(f"{there}: already exists; {first} first, then restore {item.when}/{item.place}")
        for part, target in moves.items():
            workspace.move(part, target)
        if item.place.startswith("current/"):
            served.try_to_serve(workspace, workspace.root / item.place)
    for part in moves:
        _remove_empty(workspace, part.parent)
    return [workspace.shown(target) for target in moves.values()]


def contents(workspace: Workspace, item: Item) -> list[str]:
    """Return the names of the stages of a run in the trash, or the item's own name if it is not a run."""
    return [part.name for part in _parts(workspace, item)]


def _hold_destination(workspace: Workspace, item: Item) -> contextlib.AbstractContextManager[object]:
    """Hold the locks of the path that an item returns to."""
    kind, name = item.place.split("/")[:2]
    if kind == "current":
        return registry.held(workspace, workspace.root / item.place)
    if kind == "runs":
        run = registry.run_at(workspace, item.place)
        return hold_run(run, f"the restore of {run.run_id}")
    return workspace.hold(workspace.lock(name), f"the restore of {name}")


def _remove_empty(workspace: Workspace, folder: Path) -> None:
    """Remove a folder and its parents, up to the trash, as long as they are empty."""
    with contextlib.suppress(OSError):
        while folder != workspace.trash:
            if folder.exists():
                folder.rmdir()
            folder = folder.parent


@contextlib.contextmanager
def hold_run(run: Run, what: str) -> Iterator[None]:
    """Hold the locks of all stages of a run, as stages read each other's files. Raises `AlreadyRunning`."""
    with contextlib.ExitStack() as held:
        for stage in RUN_FOLDERS:
            held.enter_context(run.workspace.hold(run.lock(stage), what))
        held.enter_context(locks.hold(run.job_lock, what, wait=False))
        yield


def _paths(workspace: Workspace) -> list[tuple[str, ...]]:
    """Return the path parts of every file in the trash."""
    workspace.storage.refresh([workspace.trash])
    return [tuple(path.split("/")) for path in workspace.storage.files(workspace.trash)]


def _parts(workspace: Workspace, item: Item) -> list[Path]:
    """Return what to move back: each stage of a run by itself, as other stages may still be in place."""
    if not item.place.startswith("runs/"):
        return [item.path]
    names = {path.partition("/")[0] for path in workspace.storage.files(item.path)}
    parts = [item.path / name for name in sorted(names)]
    run = registry.run_at(workspace, item.place)
    checkpoints = workspace.trash / item.when / run.checkpoints.relative_to(workspace.root)
    return [*parts, checkpoints] if "train" in names and workspace.storage.exists(checkpoints) else parts
