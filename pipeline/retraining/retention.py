"""Retention: find expired generations and unneeded data sets, and move them to the trash."""

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
from pipeline.retraining.rollback import rollback_target
from pipeline.storage import locks
from pipeline.workspace import RUN_FOLDERS, Workspace, events
from pipeline.workspace.freshness import Chain


def expired(chain: Chain, keep: int) -> list[Generation]:
    """Return the generations that are no longer kept, newest first.

    Keeps the newest `keep` of those that were promoted and not rolled back, the current one, the rollback target, those
    that the gate may still promote, and the newest one, which a timer would otherwise make again.
    """
    pointer = registry.read(chain.workspace.current(chain.config))
    made = generations.find(chain.workspace, chain.config)
    rolled_back = pointer.rolled_back if pointer else []
    good = [item for item in made if item.outcome == PROMOTED and item.run.place not in rolled_back]
    latest = sorted(made, key=lambda item: period(item.name) or (datetime.date.min, datetime.date.min))[-1:]
    kept = {item.run.place for item in [*good[:keep], *made[:1], *latest]} | _needed(chain.workspace, pointer)
    return [item for item in made if _is_over(item, pointer) and item.run.generation and item.run.place not in kept]


def prune(chain: Chain, chosen: list[Generation], datasets: Sequence[Path] = ()) -> tuple[list[str], list[str]]:
    """Move generations and data sets to the trash. Returns their new paths, and why the rest cannot be moved now."""
    moved, left = [], []
    path = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, path):  # so that none of them becomes current in the meantime
        served.try_to_serve(chain.workspace, path)
        needed = _needed(chain.workspace, registry.read(path))
        for item in chosen:
            if item.run.place in needed:
                left.append(f"generation {item.name} is now the current model, or the target of a rollback")
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


def unneeded_datasets(workspace: Workspace, pruned: Collection[Generation] = ()) -> list[Path]:
    """Return the data sets that no source points to and that no finished run was trained on, `pruned` runs aside.

    Raises `OSError` or `WorkspaceError` for anything this user may not read: it could need any of the data sets.
    """
    workspace.storage.refresh([workspace.datasets], ("", "sources"))
    workspace.storage.refresh_matching("datasets/*")
    workspace.storage.refresh_matching("runs/*/*", ("train",))
    trained = {run.root for run in workspace.all_runs() if (run.stage("train") / MANIFEST).exists()}
    needed = {root.parent.name for root in trained - {item.run.root for item in pruned}}
    for path in workspace.listed(workspace.datasets / "sources"):
        if path.suffix == ".json":
            os.close(open_regular(path))  # raises if this user may not read it: it could name any of them
            pointer = read_json(path)
            needed |= {str(pointer.get("dataset"))} if isinstance(pointer, dict) else set()
    made = [folder for folder in workspace.listed(workspace.datasets) if (folder / MANIFEST).exists()]
    return [folder for folder in made if folder.name not in needed]


def _is_over(item: Generation, pointer: Pointer | None) -> bool:
    """Whether the gate has decided about a generation, or would refuse it: its command was killed before."""
    return bool(item.outcome or generations.superseded_by(item.run.generation, pointer, item.run.place))


def _needed(workspace: Workspace, pointer: Pointer | None) -> set[str]:
    """Return the runs of the current model and of the rollback target."""
    if pointer is None:
        return set()
    target, _ = rollback_target(workspace, pointer)
    return {pointer.run, target.run} if target else {pointer.run}


def _move_dataset(workspace: Workspace, folder: Path) -> str:
    """Move a data set to the trash and return its new path. Raises `AlreadyRunning` if it is in use by now."""
    what, target = f"data set {folder.name}", workspace.in_trash(folder)
    workspace.storage.refresh([workspace.locks, workspace.runs, workspace.datasets], since=time.monotonic())
    for name in workspace.storage.names(workspace.locks):
        if name.startswith(f"{folder.name}.") and (who := workspace.holder(workspace.locks / name)):
            raise AlreadyRunning(f"{what} is being read by {who}")
    with (
        workspace.hold(workspace.lock(folder.name), what),
        locks.hold(workspace.readers_lock(folder.name), what, wait=False),
    ):
        if folder not in unneeded_datasets(workspace):
            there = workspace.storage.exists(folder)
            raise AlreadyRunning(f"{what} is now in use" if there else f"{what} has already been moved")
        workspace.require_published(folder)
        size = workspace.storage.folder_size(folder)
        workspace.move(folder, target)
        for parent in (workspace.runs, workspace.work):  # its runs are gone
            with contextlib.suppress(OSError):
                (parent / folder.name).rmdir()
    events.record(workspace, "data set pruned", dataset=folder.name, bytes=size, to=workspace.shown(target))
    return workspace.shown(target)


def _move(chain: Chain, item: Generation) -> str:
    workspace, run = chain.workspace, item.run
    size, target = workspace.storage.folder_size(run.root), workspace.in_trash(run.root)
    with trash.hold_run(run, f"generation {item.name}"):
        workspace.storage.refresh([run.root], since=time.monotonic())
        if not workspace.storage.exists(run.root):
            raise AlreadyRunning(f"generation {item.name} has already been moved")
        for stage in RUN_FOLDERS:
            workspace.require_published(run.stage(stage))
        workspace.move(run.root, target)
    fields = {"run": run.place, "generation": item.name, "bytes": size, "to": workspace.shown(target)}
    events.record(workspace, "pruned", **registry.event_fields(chain), **fields)
    return workspace.shown(target)
