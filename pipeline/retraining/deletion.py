"""Deleting for good what has been of no use for long: the trash, and what stages and downloads left unfinished.

Everything else in a workspace is only ever moved to the trash.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pipeline.errors import AlreadyRunning
from pipeline.files import MANIFEST, remove
from pipeline.retraining import trash
from pipeline.storage import LOCAL, locks
from pipeline.workspace import RUN_FOLDERS, Workspace, events

#: What was touched later than this is never deleted.
LEAST_AGE = timedelta(days=1)


def old_trash(workspace: Workspace, age: timedelta) -> list[Path]:
    """The folders `trash/<when>` whose content was moved there longer ago than `age`."""
    return [workspace.trash / name for name in trash.moments(workspace) if name.lstrip(".") < _limit(age)]


def _limit(age: timedelta) -> str:
    """The name of a folder in the trash of that age."""
    return (datetime.now(timezone.utc) - age).strftime(trash.WHEN)


def leftovers(workspace: Workspace, age: timedelta) -> list[Path]:
    """What nobody on this host touched for `age`: files in `work/` (checkpoints, downloads, locks), unfinished folders,
    and checkpoints that a training moved to the trash where `old_trash` does not see them.

    Not the few by which a workspace in a store knows what it has seen.
    """
    limit, found = time.time() - age.total_seconds(), []
    names = [name.split("/") for name in LOCAL.files(workspace.work)]
    work = [workspace.work.joinpath(*parts) for parts in names if len(parts) > 2 or parts[0] in ("locks", "downloads")]
    # Earlier versions noted no time in the path.
    for path in [*work, *workspace.trash.glob("*-step-*.npz")]:
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime < limit:
                found.append(path)
    if workspace.storage is not LOCAL:  # of which `old_trash` sees only what is in the store
        old = (folder for folder in workspace.trash.glob("[0-9]*T*Z") if folder.name < _limit(age))
        found += [path for folder in old for path in folder.rglob("*") if path.is_file()]
    return sorted(found) + [folder for folder in _unfinished(workspace) if _touched(folder) < limit]


def _unfinished(workspace: Workspace) -> Iterator[Path]:
    """Runs and data sets here of which nothing is finished, or of which other hosts moved the manifests away."""
    for folder in (*(run.root for run in workspace.all_runs()), *workspace.datasets.glob("*-*")):
        done = any((folder / stage / MANIFEST).exists() for stage in ("", *RUN_FOLDERS))
        if not done and _is_ours(workspace, folder):
            yield folder


def _is_ours(workspace: Workspace, path: Path) -> bool:
    """False for what a link in the workspace leads to; `runs/`, `datasets/` or `work/` as a whole may be one."""
    kind, *parts = path.relative_to(workspace.root).parts
    return os.path.realpath(path) == os.path.join(os.path.realpath(workspace.root / kind), *parts)


def _touched(folder: Path) -> float:
    touched = []
    for name in ("", *LOCAL.files(folder)):
        with contextlib.suppress(FileNotFoundError):  # replaced by the training that made it
            touched.append((folder / name).lstat().st_mtime)
    return max(touched, default=math.inf)


def delete(workspace: Workspace, folders: list[Path], files: list[Path]) -> None:
    """Delete folders of the trash, and leftovers unless somebody works on their run or data set.

    What cannot be deleted stops nothing; then raises the first such `OSError`.
    """
    size, problems = sum(map(workspace.storage.folder_size, folders)), []
    leftover = functools.partial(_delete_leftover, workspace)
    work = [(workspace.storage.delete, path) for path in folders] + [(leftover, path) for path in files]
    for remove_one, path in work:
        try:
            remove_one(path)
        except (AlreadyRunning, FileNotFoundError):
            continue
        except OSError as error:
            problems.append(error)
    events.record(workspace, "deleted", trash=len(folders), bytes=size, leftovers=len(files))
    events.publish(workspace)
    if problems:
        raise problems[0]


def _delete_leftover(workspace: Workspace, path: Path) -> None:
    if path.parent == workspace.locks:
        locks.remove(path)
        return
    kind, *parts = path.relative_to(workspace.root).parts
    with contextlib.ExitStack() as held:
        if kind == "datasets":
            held.enter_context(workspace.hold(workspace.lock(path.name), path.name))
        elif parts[0] == "downloads":
            source = parts[1].partition(".archive")[0]
            held.enter_context(workspace.hold(workspace.lock(source), path.name))
        elif kind != "trash":
            run = workspace.run(*parts[:2])
            held.enter_context(trash.whole_run(run, run.run_id))
        # Touched since it was listed, or replaced by a link.
        if _touched(path) > time.time() - LEAST_AGE.total_seconds() or not _is_ours(workspace, path):
            return
        remove(path)
        above = {"work": len(parts) - 2, "trash": len(parts) - 1}.get(kind, 0)
        for folder in path.parents[:above]:  # up to the run's own, or the moment's
            with contextlib.suppress(OSError):
                folder.rmdir()
