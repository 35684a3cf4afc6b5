"""Deleting for good what has been of no use for long: the trash, and what trainings and downloads left in `work/`.

Everything else in a workspace is only ever moved to the trash.
"""

from __future__ import annotations

import contextlib
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pipeline.errors import AlreadyRunning, from_os_error
from pipeline.retraining import trash
from pipeline.storage import LOCAL, locks
from pipeline.workspace import Workspace, events


def old_trash(workspace: Workspace, age: timedelta) -> list[Path]:
    """The folders `trash/<when>` whose content was moved there longer ago than `age`."""
    limit = (datetime.now(timezone.utc) - age).strftime(trash.WHEN)
    return [workspace.trash / name for name in trash.moments(workspace) if name.lstrip(".") < limit]


def leftovers(workspace: Workspace, age: timedelta) -> list[Path]:
    """The files in `work/` on this host that nobody touched for `age`: checkpoints, downloads, locks.

    Not the few by which a workspace in a store knows what it has seen.
    """
    limit, found = time.time() - age.total_seconds(), []
    for name in LOCAL.files(workspace.work):
        parts, path = name.split("/"), workspace.work / name
        with contextlib.suppress(FileNotFoundError):
            if (len(parts) > 2 or parts[0] in ("locks", "downloads")) and path.lstat().st_mtime < limit:
                found.append(path)
    return sorted(found)


def delete(workspace: Workspace, folders: list[Path], files: list[Path]) -> None:
    """Delete folders of the trash, and files in `work/` unless their run is being trained."""
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
    parts = path.relative_to(workspace.work).parts
    with contextlib.ExitStack() as held:
        if parts[0] != "downloads":
            run = workspace.run(*parts[:2])
            held.enter_context(workspace.hold(run.lock("train"), run.run_id))
            held.enter_context(locks.hold(run.job_lock, run.run_id, wait=False))
        path.unlink()
        for folder in path.parents[: len(parts) - 2]:  # up to the run's own
            with contextlib.suppress(OSError):
                folder.rmdir()
