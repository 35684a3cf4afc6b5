"""Recompute the checksums of all files in a workspace, and report what is damaged or unfinished."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline import status
from pipeline.errors import WorkspaceError
from pipeline.retraining import registry, served
from pipeline.retraining.registry import Pointer
from pipeline.workspace import MANIFEST, RUN_FOLDERS, Workspace, manifest


@dataclass
class Verified:
    """The problems that `verify` found, one line each, and how many files it checked."""

    damaged: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    files: int = 0


def verify(workspace: Workspace) -> Verified:
    """Find files that are missing or do not match their recorded SHA-256, and pointers that cannot be read.

    A stage that is unfinished, or is being rerun right now, does not count as damaged. Raises `WorkspaceError` if the
    workspace does not exist or cannot be listed.
    """
    workspace.refresh()
    workspace.listed(workspace.root)  # raises if this user may not read it
    if workspace.root.is_file() or not workspace.storage.exists(workspace.root):
        raise WorkspaceError(f"{workspace.shown(workspace.root)}: there is no workspace here; check --workspace")
    result = Verified()
    for folder in workspace.listed(workspace.datasets) + workspace.comparisons():
        if (folder / MANIFEST).exists():
            result.damaged += _damage(workspace, folder, result)
    for run in workspace.all_runs():
        for stage in RUN_FOLDERS:
            folder, place = run.stage(stage), f"{run.place}/{stage}"
            if not folder.exists():
                continue
            finished = (folder / MANIFEST).exists()
            damage = _damage(workspace, folder, result) if finished else []
            if finished and not damage:
                continue
            if worker := status.worker_on(run, stage):
                result.unfinished.append(f"{place}: being worked on by {worker}")
            elif finished:
                result.damaged += damage
            elif stage == "train" and (folder / "model.params").exists() and not status.checkpoints(run):
                # A training that is about to publish has a checkpoint until its manifest is there.
                result.damaged.append(f"{place}/{MANIFEST} is missing")
            else:
                result.unfinished.append(f"{place}: the next run makes it")
    for pointer in workspace.currents():
        try:
            current, damaged = registry.read(pointer), served.damage(workspace, pointer)
            result.damaged += damaged
            if current:
                result.damaged += _lost(workspace, pointer, current, result)
            if current and not damaged and (outdated := served.outdated(pointer, current)):
                result.unfinished.append(outdated)
        except WorkspaceError as error:
            result.damaged.append(str(error))
    return result


def _lost(workspace: Workspace, pointer: Path, current: Pointer, result: Verified) -> list[str]:
    """Return a line if the current model's run is gone; empty if it is there, being trained or listed as damaged."""
    train = f"{current.run}/train"
    if any(line.startswith((f"{train}/", f"{train}:")) for line in result.damaged + result.unfinished):
        return []
    problem = registry.baseline_problem(workspace, pointer)
    return [f"{pointer.relative_to(workspace.root)}: {problem}"] if problem else []


def _damage(workspace: Workspace, folder: Path, result: Verified) -> list[str]:
    """Return what is damaged in the folder of a finished stage. Checks again if the stage was rerun in the meantime."""
    place = folder.relative_to(workspace.root)
    while True:
        recorded = manifest.read(folder)
        if recorded is None:  # damaged, or just moved away
            return [f"{place}/{MANIFEST} cannot be read"] if (folder / MANIFEST).exists() else []
        damage = manifest.damage(folder, recorded, workspace.storage)
        checked = len(recorded["files"])
        if trainer := recorded["details"].get("trainer"):  # no stage needs it, but an exact continuation does
            checked += 1
            about = {"files": {"trainer.npz": trainer}}
            damage += manifest.damage(folder, about, workspace.storage)
        if not damage or manifest.read(folder) == recorded:
            result.files += checked
            return [str(place.parent / problem) for problem in damage]
