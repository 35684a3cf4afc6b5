"""Recompute the checksums of every file of a workspace, and name what is damaged or unfinished."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline import status
from pipeline.errors import WorkspaceError
from pipeline.retraining import registry, served
from pipeline.workspace import MANIFEST, RUN_FOLDERS, Workspace, manifest


@dataclass
class Verified:
    """What `verify` found, in words, and how many files it checked."""

    damaged: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    files: int = 0


def verify(workspace: Workspace) -> Verified:
    """Look for files that are missing or do not have their recorded SHA-256, and for pointers that cannot be read.

    A stage that is not finished, or that somebody is making anew at this moment, is not damaged. Raises
    `WorkspaceError` for a workspace that is not there or cannot be listed.
    """
    workspace.refresh()
    workspace.listed(workspace.root)  # raises when this user may not
    if workspace.root.is_file() or not workspace.storage.exists(workspace.root):
        raise WorkspaceError(f"{workspace.shown(workspace.root)}: there is no workspace here; check --workspace")
    found = Verified()
    for folder in workspace.listed(workspace.datasets) + workspace.comparisons():
        if (folder / MANIFEST).exists():
            found.damaged += _damage(workspace, folder, found)
    for run in workspace.all_runs():
        for stage in RUN_FOLDERS:
            folder, place = run.stage(stage), f"{run.place}/{stage}"
            if not folder.exists():
                continue
            finished = (folder / MANIFEST).exists()
            damage = _damage(workspace, folder, found) if finished else []
            if finished and not damage:
                continue
            if worker := status.worker_on(run, stage):
                found.unfinished.append(f"{place}: being worked on by {worker}")
            elif finished:
                found.damaged += damage
            elif stage == "train" and (folder / "model.params").exists() and not status.checkpoints(run):
                # A training that is about to publish has a checkpoint until its manifest is there.
                found.damaged.append(f"{place}/{MANIFEST} is missing")
            else:
                found.unfinished.append(f"{place}: the next run makes it")
    for pointer in workspace.currents():
        try:
            current, damaged = registry.read(pointer), served.damage(workspace, pointer)
            found.damaged += damaged
            if current and not damaged and (outdated := served.outdated(pointer, current)):
                found.unfinished.append(outdated)
        except WorkspaceError as error:
            found.damaged.append(str(error))
    return found


def _damage(workspace: Workspace, folder: Path, found: Verified) -> list[str]:
    """What is damaged in the folder of a finished stage. One that was made anew meanwhile is looked at once more."""
    place = folder.relative_to(workspace.root)
    while True:
        recorded = manifest.read(folder)
        if recorded is None:  # or it was moved away this very moment
            return [f"{place}/{MANIFEST} cannot be read"] if (folder / MANIFEST).exists() else []
        damage = manifest.damage(folder, recorded, workspace.storage)
        checked = len(recorded["files"])
        if trainer := recorded["details"].get("trainer"):  # not needed by any stage, but to go on exactly
            checked += 1
            about = {"files": {"trainer.npz": trainer}}
            damage += manifest.damage(folder, about, workspace.storage)
        if not damage or manifest.read(folder) == recorded:
            found.files += checked
            return [f"{place.parent / problem}" for problem in damage]
