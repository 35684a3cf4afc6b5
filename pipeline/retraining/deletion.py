"""Deleting for good what has been of no use for long: the trash, and what stages and downloads left unfinished.

Everything else in a workspace is only ever moved to the trash.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pipeline.errors import AlreadyRunning, from_os_error
from pipeline.files import MANIFEST, remove
from pipeline.retraining import trash
from pipeline.storage import LOCAL, locks
from pipeline.workspace import RUN_FOLDERS, Workspace, events


def old_trash(workspace: Workspace, age: timedelta) -> list[Path]:
    """The folders `trash/<when>` whose content was moved there longer ago than `age`."""
    limit = (datetime.now(timezone.utc) - age).strftime(trash.WHEN)
    return [workspace.trash / name for name in trash.moments(workspace) if name.lstrip(".") < limit]


def leftovers(workspace: Workspace, age: timedelta) -> list[Path]:
    """What nobody on this host touched for `age`: files in `work/` (checkpoints, downloads, locks), unfinished folders.

    Not the few by which a workspace in a store knows what it has seen.
    """
    limit, found = time.time() - age.total_seconds(), []
    for name in LOCAL.files(workspace.work):
        parts, path = name.split("/"), workspace.work / name
        with contextlib.suppress(FileNotFoundError):
            if (len(parts) > 2 or parts[0] in ("locks", "downloads")) and path.lstat().st_mtime < limit:
                found.append(path)
    return sorted(found) + [folder for folder in _unfinished(workspace) if _touched(folder) < limit]


def _unfinished(workspace: Workspace) -> Iterator[Path]:
    """Runs and data sets here of which nothing is finished, or of which other hosts moved the manifests away."""
    for folder in (*workspace.runs.glob("*/*"), *workspace.datasets.glob("*-*")):
        if not any((folder / stage / MANIFEST).exists() for stage in ("", *RUN_FOLDERS)):
            yield folder


def _touched(folder: Path) -> float:
    return max((folder / name).lstat().st_mtime for name in ("", *LOCAL.files(folder)))


def delete(workspace: Workspace, folders: list[Path], files: list[Path]) -> None:
    """Delete folders of the trash, and leftovers unless somebody works on their run or data set."""
    size = sum(map(workspace.storage.size_of, folders))
    try:
        for folder in folders:
            workspace.storage.delete(folder)
        for path in files:
            with contextlib.suppress(AlreadyRunning, FileNotFoundError):
                _delete_leftover(workspace, path)
    except OSError as error:
        raise from_os_error(error, "delete it") from error
    events.record(workspace, "deleted", trash=len(folders), bytes=size, leftovers=len(files))
    events.publish(workspace)


def _delete_leftover(workspace: Workspace, path: Path) -> None:
    if path.parent == workspace.locks:
        locks.remove(path)
        return
    kind, *parts = path.relative_to(workspace.root).parts
    with contextlib.ExitStack() as held:
        if kind == "datasets":
            held.enter_context(workspace.hold(workspace.lock(path.name), path.name))
        elif parts[0] != "downloads":
            run = workspace.run(*parts[:2])
            held.enter_context(trash.whole_run(run, run.run_id))
        remove(path)
        for folder in path.parents[: len(parts) - 2] if kind == "work" else ():  # up to the run's own
            with contextlib.suppress(OSError):
                folder.rmdir()
