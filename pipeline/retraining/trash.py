"""The trash of a workspace: what was set aside, pruned or retired, under the path that it had, and its way back.

`trash/<when>/<path in the workspace>`. Nothing here deletes anything; emptying the trash is left to people.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import WorkspaceError, from_os_error
from pipeline.files import now
from pipeline.retraining import registry
from pipeline.storage import locks
from pipeline.workspace import RUN_FOLDERS, Run, Workspace

_WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")

#: How many parts the path of a thing of each room has: a run, a data set, a pointer to a current model.
_PARTS = {"runs": 3, "datasets": 2, "current": 3}


@dataclass(frozen=True)
class Entry:
    """One thing in the trash. `place` is the path in the workspace that it had."""

    place: str
    when: str
    path: Path

    def is_named(self, name: str) -> bool:
        """True when a person may mean it by `name`: its path, a part of that, or its generation."""
        parts = self.place.split("/")
        return name in (self.place, *parts, Path(parts[-1]).stem) or parts[-1].endswith(f"@{name}")


def target(workspace: Workspace, path: Path) -> Path:
    """Where `path` of the workspace goes when it is moved to the trash now."""
    return workspace.trash / now().replace(":", "") / path.relative_to(workspace.root)


def entries(workspace: Workspace) -> list[Entry]:
    """What is in the trash and knows its way back, newest first."""
    found = {(when, "/".join(rest)) for when, *rest in _things(workspace) if _WHEN.fullmatch(when)}
    return [Entry(place, when, workspace.trash / when / place) for when, place in sorted(found, reverse=True)]


def strangers(workspace: Workspace) -> list[str]:
    """What else is in the trash, by name: an earlier version did not note where things came from, people do not."""
    if mirror := workspace.mirror:
        mirror.know_folders([workspace.trash])
        names = {path.split("/")[1] for path in mirror.below(workspace.trash)}
    else:
        names = {path.name for path in workspace.trash.glob("*")}
    return sorted(name for name in names if not _WHEN.fullmatch(name))


def hint(workspace: Workspace, name: str) -> str:
    """How to bring back what `name` means, for the end of a message; empty when that is not in the trash."""
    if not any(entry.is_named(name) for entry in entries(workspace)):
        return ""
    return f"; it is in the trash: `Restore --item {name} --confirm` brings it back"


def restore(workspace: Workspace, entry: Entry) -> list[str]:
    """Move it back to where it was, of a run each stage; gives where that is. Raises `WorkspaceError` when something
    else is there now.
    """
    moves = {part: workspace.root / entry.place / part.relative_to(entry.path) for part in _parts(workspace, entry)}
    taken = [goal for goal in moves.values() if _exists(workspace, goal)]
    if taken:
        there = ", ".join(workspace.shown(goal) for goal in taken)
        raise WorkspaceError(f"{there}: there again; set that aside first, then restore {entry.place}")
    with contextlib.ExitStack() as held:
        parts = entry.place.split("/")
        if parts[0] == "runs":
            held.enter_context(whole_run(workspace.run(parts[1], parts[2]), f"the restoring of {parts[2]}"))
        elif parts[0] == "current":
            held.enter_context(registry.held(workspace, workspace.root / entry.place))
        else:
            what, mirror = f"the restoring of {parts[1]}", workspace.mirror
            held.enter_context(locks.hold(workspace.lock(parts[1]), what, False, mirror=mirror))
        try:
            for part, goal in moves.items():
                workspace.move(part, goal)
        except OSError as error:
            raise from_os_error(error, "restore it from the trash") from error
    _remove_empty(workspace, entry.path)
    return [workspace.shown(goal) for goal in moves.values()]


def contents(workspace: Workspace, entry: Entry) -> list[str]:
    """What of a run is there, by name: all of its stages, or one that was set aside; of anything else its own name."""
    return [part.name for part in _parts(workspace, entry)]


def _remove_empty(workspace: Workspace, folder: Path) -> None:
    """Remove what nothing is left in, up to the trash."""
    with contextlib.suppress(OSError):
        while folder != workspace.trash:
            if folder.exists():
                folder.rmdir()
            folder = folder.parent


@contextlib.contextmanager
def whole_run(run: Run, what: str) -> Iterator[None]:
    """Hold the locks of all stages of a run, of which each reads what others wrote; raises `AlreadyRunning`."""
    with contextlib.ExitStack() as held:
        for stage in RUN_FOLDERS:
            held.enter_context(locks.hold(run.lock(stage), what, wait=False, mirror=run.workspace.mirror))
        held.enter_context(locks.hold(run.job_lock, what, wait=False))
        yield


def _things(workspace: Workspace) -> Iterator[tuple[str, ...]]:
    """When each thing was moved to the trash and the path that it had, in parts."""
    for room, length in _PARTS.items():
        if mirror := workspace.mirror:
            mirror.know_folders([workspace.trash])
            paths = [tuple(path.split("/")[1:]) for path in mirror.below(workspace.trash)]
            yield from {path[: length + 1] for path in paths if len(path) > length and path[1] == room}
        else:
            pattern = "/".join(["*", room, *["[!.]*"] * (length - 1)])
            yield from (path.relative_to(workspace.trash).parts for path in workspace.trash.glob(pattern))


def _parts(workspace: Workspace, entry: Entry) -> list[Path]:
    """What is moved at once: a run's stages, as others of them may still be where they were."""
    if not entry.place.startswith("runs/"):
        return [entry.path]
    if mirror := workspace.mirror:
        depth = len(entry.path.relative_to(workspace.root).parts)
        names = {Path(path).parts[depth] for path in mirror.below(entry.path)}
        return [entry.path / name for name in sorted(names)]
    return sorted(entry.path.iterdir())


def _exists(workspace: Workspace, path: Path) -> bool:
    if mirror := workspace.mirror:
        mirror.know_folders([path.parent, path])
        return bool(mirror.below(path)) or path.name in mirror.names(path.parent)
    return path.exists()
