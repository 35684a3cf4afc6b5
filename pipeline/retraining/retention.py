"""Retention: which generations have expired and which data sets nobody needs any more, and moving them to the trash."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import AlreadyRunning
from pipeline.files import MANIFEST, open_regular, read_json
from pipeline.retraining import generations, registry, served, trash
from pipeline.retraining.generations import PROMOTED, Generation
from pipeline.retraining.periods import period
from pipeline.retraining.registry import Pointer
from pipeline.retraining.rollback import former
from pipeline.storage import locks
from pipeline.workspace import Workspace, events
from pipeline.workspace.freshness import Chain


def expired(chain: Chain, keep: int) -> list[Generation]:
    """The generations that are no longer kept, newest first.

    Kept are the newest `keep` of those that were promoted and not rolled back, the current one, the one that a roll
    back goes to, those that await the gate's decision, and the newest one, which a timer would otherwise make again.
    """
    pointer = registry.read(chain.workspace.current(chain.config))
    made = generations.find(chain.workspace, chain.config)
    rolled_back = pointer.rolled_back if pointer else []
    good = [item for item in made if item.outcome == PROMOTED and item.run.place not in rolled_back]
    latest = sorted(made, key=lambda item: period(item.name) or (datetime.date.min, datetime.date.min))[-1:]
    kept = {item.run.place for item in [*good[:keep], *made[:1], *latest]} | _needed(chain.workspace, pointer)
    return [item for item in made if item.outcome and item.run.generation and item.run.place not in kept]


def prune(chain: Chain, chosen: list[Generation], datasets: Sequence[Path] = ()) -> tuple[list[str], list[str]]:
    """Move generations and data sets to the trash; gives their new places, and why any others cannot be moved now."""
    moved, left = [], []
    path = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, path):  # so that nobody makes one of them current meanwhile
        served.try_to_serve(chain.workspace, path)
        needed = _needed(chain.workspace, registry.read(path))
        for item in chosen:
            if item.run.place in needed:
                left.append(f"generation {item.name} has become the current one, or the one before it")
                continue
            try:
                moved.append(_move(chain, item))
            except AlreadyRunning as error:
                left.append(str(error))
    for folder in datasets:
        try:
            moved.append(_move_dataset(chain.workspace, folder))
        except AlreadyRunning as error:
            left.append(str(error))
    events.publish(chain.workspace)
    return moved, left


def unneeded(workspace: Workspace, pruned: Collection[Generation] = ()) -> list[Path]:
    """The data sets that no source is now and no finished run was trained on, when those to be pruned are gone.

    Raises `OSError` or `WorkspaceError` for what this user may not read: a data set may be needed by that.
    """
    workspace.storage.refresh([workspace.datasets], ("", "sources"))
    workspace.storage.refresh_matching("datasets/*")
    workspace.storage.refresh_matching("runs/*/*", ("train",))
    trained = {run.root for run in workspace.all_runs() if (run.stage("train") / MANIFEST).exists()}
    needed = {root.parent.name for root in trained - {item.run.root for item in pruned}}
    for path in workspace.listed(workspace.datasets / "sources"):
        if path.suffix == ".json":
            os.close(open_regular(path))  # one that this user may not read could name any of them
            pointer = read_json(path)
            needed |= {str(pointer.get("dataset"))} if isinstance(pointer, dict) else set()
    made = [folder for folder in workspace.listed(workspace.datasets) if (folder / MANIFEST).exists()]
    return [folder for folder in made if folder.name not in needed]


def _needed(workspace: Workspace, pointer: Pointer | None) -> set[str]:
    """The runs of the current model and of the one that a roll back goes to."""
    return {entry.run for entry in (pointer, former(workspace, pointer)[0]) if entry} if pointer else set()


def _move_dataset(workspace: Workspace, folder: Path) -> str:
    """Move a data set to the trash, unless it is in use by now; gives its new place. Raises `AlreadyRunning`."""
    what, target = f"data set {folder.name}", workspace.in_trash(folder)
    workspace.storage.refresh([workspace.locks, workspace.runs, workspace.datasets], since=time.monotonic())
    for name in workspace.storage.names(workspace.locks):
        if name.startswith(f"{folder.name}.") and (who := workspace.holder(workspace.locks / name)):
            raise AlreadyRunning(f"{what} is being read by {who}")
    with (
        workspace.hold(workspace.lock(folder.name), what),
        locks.hold(workspace.readers_lock(folder.name), what, wait=False),
    ):
        if folder not in unneeded(workspace):
            there = workspace.storage.exists(folder)
            raise AlreadyRunning(f"{what} is now in use" if there else f"{what} was moved meanwhile")
        size = workspace.storage.folder_size(folder)
        workspace.move(folder, target)
        for room in (workspace.runs, workspace.work):  # of its runs, which are gone
            with contextlib.suppress(OSError):
                (room / folder.name).rmdir()
    events.record(workspace, "data set pruned", dataset=folder.name, bytes=size, to=workspace.shown(target))
    return workspace.shown(target)


def _move(chain: Chain, item: Generation) -> str:
    workspace, run = chain.workspace, item.run
    size, target = workspace.storage.folder_size(run.root), workspace.in_trash(run.root)
    with trash.whole_run(run, f"generation {item.name}"):
        workspace.storage.refresh([run.root], since=time.monotonic())
        if not workspace.storage.exists(run.root):
            raise AlreadyRunning(f"generation {item.name} was moved meanwhile")
        workspace.move(run.root, target)
    told = {"run": run.place, "generation": item.name, "bytes": size, "to": workspace.shown(target)}
    events.record(workspace, "pruned", **registry.about(chain), **told)
    return workspace.shown(target)
