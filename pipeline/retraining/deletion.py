"""Permanent deletion of old trash and of unfinished work. Everything else is only ever moved to the trash."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pipeline.errors import AlreadyRunning
from pipeline.files import MANIFEST, remove
from pipeline.retraining import trash
from pipeline.storage import LOCAL, locks
from pipeline.workspace import RUN_FOLDERS, Workspace, events

#: Never delete anything touched more recently than this.
LEAST_AGE = timedelta(days=1)


def old_trash(workspace: Workspace, age: timedelta) -> list[Path]:
    """Return the folders `trash/<when>` whose content was moved there longer ago than `age`."""
    return [workspace.trash / name for name in trash.folder_names(workspace) if name.lstrip(".") < _limit(age)]


def _limit(age: timedelta) -> str:
    return (datetime.now(timezone.utc) - age).strftime(trash.WHEN)


def leftovers(workspace: Workspace, age: timedelta) -> list[Path]:
    """Return what nobody on this host has touched for `age`.

    This covers files in `work/` (checkpoints, downloads, locks), unfinished folders, and checkpoints in the trash that
    `old_trash` does not see. It skips the files in which a workspace in a store records what it has seen.
    """
    limit, old_files = time.time() - age.total_seconds(), []
    names = [name.split("/") for name in LOCAL.files(workspace.work)]
    work = [workspace.work.joinpath(*parts) for parts in names if len(parts) > 2 or parts[0] in ("locks", "downloads")]
    # Earlier versions moved checkpoints straight into the trash, without a timestamp in the path.
    for path in [*work, *workspace.trash.glob("*-step-*.npz")]:
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime < limit:
                old_files.append(path)
    if workspace.storage is not LOCAL:  # `old_trash` sees only what is in the store
        old = (folder for folder in workspace.trash.glob("[0-9]*T*Z") if folder.name < _limit(age))
        old_files += [path for folder in old for path in folder.rglob("*") if path.is_file()]
    return sorted(old_files) + [folder for folder in _unfinished(workspace) if _last_change(folder) < limit]


def _unfinished(workspace: Workspace) -> Iterator[Path]:
    """Find local runs and data sets without a manifest: never finished, or moved to the trash by another host."""
    made = [path for path in workspace.datasets.glob("*-*") if re.fullmatch(r".+-[0-9a-f]{8}", path.name)]
    for folder in (*(run.root for run in workspace.all_runs()), *made):
        done = any((folder / stage / MANIFEST).exists() for stage in ("", *RUN_FOLDERS))
        if not done and _is_ours(workspace, folder):
            yield folder


def _is_ours(workspace: Workspace, path: Path) -> bool:
    """Whether `path` is not behind a link in the workspace. `runs/`, `datasets/` and `work/` may be links."""
    kind, *parts = path.relative_to(workspace.root).parts
    return os.path.realpath(path) == os.path.join(os.path.realpath(workspace.root / kind), *parts)


def _last_change(folder: Path) -> float:
    times = []
    for name in ("", *LOCAL.files(folder)):
        with contextlib.suppress(FileNotFoundError):  # its training has just replaced it
            times.append((folder / name).lstat().st_mtime)
    return max(times, default=math.inf)


def delete(workspace: Workspace, folders: list[Path], files: list[Path]) -> None:
    """Delete trash folders, and leftovers that nobody is working on. Raises the first `OSError` after trying all."""
    deleted, problems = {"trash": 0, "bytes": 0, "leftovers": 0}, []
    for index, path in enumerate([*folders, *files]):
        try:
            if index < len(folders):
                size = workspace.storage.folder_size(path)
                workspace.storage.delete(path)
                deleted["trash"] += 1
                deleted["bytes"] += size
            else:
                deleted["leftovers"] += _delete_leftover(workspace, path)
        except (AlreadyRunning, FileNotFoundError):
            continue
        except OSError as error:
            problems.append(error)
    events.record(workspace, "deleted", **deleted)
    events.publish(workspace)
    if problems:
        raise problems[0]


def _delete_leftover(workspace: Workspace, path: Path) -> bool:
    """Delete a leftover unless it is in use; returns whether it is gone."""
    if path.parent == workspace.locks:
        locks.remove(path)
        return not path.exists()
    kind, *parts = path.relative_to(workspace.root).parts
    with contextlib.ExitStack() as held:
        if kind == "datasets":
            held.enter_context(workspace.hold(workspace.lock(path.name), path.name))
        elif parts[0] == "downloads":
            source = parts[1].partition(".archive")[0]
            held.enter_context(workspace.hold(workspace.lock(source), path.name))
        elif kind != "trash":
            run = workspace.run(*parts[:2])
            held.enter_context(trash.hold_run(run, run.run_id))
        # It may have been touched, or replaced by a link, since it was listed.
        if _last_change(path) > time.time() - LEAST_AGE.total_seconds() or not _is_ours(workspace, path):
            return False
        remove(path)
        above = {"work": len(parts) - 2, "trash": len(parts) - 1}.get(kind, 0)
        for folder in path.parents[:above]:  # up to the run's folder, or the one in the trash
            with contextlib.suppress(OSError):
                folder.rmdir()
    return True
