"""Where a training can resume from: its checkpoints, or its finished run if `epochs` were raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import differences, recorded_training, to_dict
from pipeline.errors import WorkspaceError
from pipeline.files import move
from pipeline.model import weights
from pipeline.tables import read_numbers
from pipeline.text import counted
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Damaged, Snapshot
from pipeline.training.reproducibility import changed_since
from pipeline.training.session import Session
from pipeline.workspace import manifest
from pipeline.workspace.freshness import OPERATIONAL_KEYS, trained_epochs


def identity(session: Session) -> dict[str, Any]:
    """What a checkpoint and a training that resumes from it must have in common."""
    chain = session.chain
    training = _identity_keys(to_dict(session.training))
    return {**chain.inputs("train"), "generation": chain.generation, "training": training}


def _identity_keys(training: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in training.items() if key not in ("epochs", "precision", *OPERATIONAL_KEYS)}


def newest_checkpoint(session: Session) -> tuple[Snapshot, str] | None:
    """The newest intact checkpoint of this training, with a line for the log. Moves unusable ones out of the way."""
    result, note, paths = _finished(session), session.reporter.note, checkpoint.paths(session.run.checkpoints)
    if paths and result and manifest.damage(session.run.stage("train"), result):
        result = None
    finished = trained_epochs(result)
    for path in paths:
        try:
            snapshot = checkpoint.load(path)
            mismatch = _mismatch(session, snapshot)
            if not mismatch:
                _check_intact(session, snapshot, path)
        except Damaged as error:
            note(f"{error}; falling back to the previous one")
            if session.worker.is_leader:
                checkpoint.quarantine(path)
            continue
        if mismatch:
            target = session.run.workspace.in_trash(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            move(path, target)
            note(f"ignoring checkpoint {path.name}: {mismatch}; moved to {target}")
        elif snapshot.meta["counters"]["epoch"] < finished:
            note(f"ignoring checkpoint {path.name}: the finished training of {counted(finished, 'epoch')} is newer")
        else:
            return snapshot, f"resumed from {path.name}"
    return None


def _finished(session: Session) -> dict[str, Any] | None:
    """The manifest of the finished run; None if a file is missing or truncated, or its inputs differ."""
    folder = session.run.stage("train")
    finished = manifest.read(folder)
    if finished is None or manifest.problems(folder, "train", session.chain.inputs("train")):
        return None
    return finished


def _mismatch(session: Session, snapshot: Snapshot) -> str:
    """Why a checkpoint does not belong to this training; empty if it does."""
    saved = dict(snapshot.meta["identity"])
    saved["training"] = _identity_keys(recorded_training(saved["training"]))
    if changed := differences(saved, identity(session)):
        return "the configuration changed since: " + "; ".join(changed[:4])
    counters, epochs = snapshot.meta["counters"], session.training.epochs
    if counters["epoch"] > epochs or (counters["epoch"] == epochs and counters["step_in_epoch"]):
        return f"it is at epoch {counters['epoch'] + bool(counters['step_in_epoch'])}, but training.epochs is {epochs}"
    return ""


def _check_intact(session: Session, snapshot: Snapshot, path: Path) -> None:
    """Raise `Damaged` if this training cannot have written the checkpoint, though it claims to be its own."""
    problem = session.network.mismatch(snapshot.parameters, snapshot.optimizer_state)
    if not problem and not snapshot.is_finite():
        problem = "its numbers are not all finite"
    if not problem and snapshot.meta["counters"]["step_in_epoch"] > session.batches.steps_per_epoch:
        step = snapshot.meta["counters"]["step_in_epoch"]
        problem = f"its step {step} does not exist: an epoch has {counted(session.batches.steps_per_epoch, 'step')}"
    if problem:
        raise Damaged(path, problem)


def finished_run(session: Session) -> tuple[Snapshot, str] | None:
    """The state of the finished run, with a line for the log, if more epochs are configured than it has."""
    finished, folder = _finished(session), session.run.stage("train")
    epochs = trained_epochs(finished)
    if finished is None or epochs >= session.training.epochs:
        return None
    sha256 = finished["files"]["model.params"]["sha256"]
    weights.load_verified(session.network.net, folder / "model.params", sha256, session.devices.contexts)
    parameters = session.network.state()[0]
    trainer = folder / "trainer.npz"
    try:
        snapshot = checkpoint.load(trainer, manifest.digests(finished).get(trainer.name, "none"))
        snapshot.parameters = {**parameters, **snapshot.parameters}  # adds each device's running statistics
        _check_intact(session, snapshot, trainer)
    except Damaged as error:
        session.reporter.note(f"{error}; resuming from model.params with zero momentum")
        snapshot = Snapshot(parameters, {}, _rebuild_meta(folder, finished))
    # The batch size may have changed: count the finished epochs in steps of the new size.
    snapshot.meta["counters"]["step"] = epochs * session.batches.steps_per_epoch
    snapshot.meta["counters"]["inexact"] += changed_since(session, finished)
    return snapshot, f"resumed from {counted(epochs, 'epoch')} of {folder.name}/model.params"


def _rebuild_meta(folder: Path, finished: dict[str, Any]) -> dict[str, Any]:
    """Rebuild the `meta` of `trainer.npz` from the other files of the finished run."""
    if damaged := manifest.damage(folder, finished):
        raise WorkspaceError(
            f"{damaged[0]}; restore it from a backup, or set the stage aside "
            "(luigi --module tasks SetAside --stage train --confirm) and train again"
        )
    details = finished["details"]
    counters = {
        "step": details["steps"],
        "epoch": trained_epochs(finished),
        "step_in_epoch": 0,
        "seconds": details["seconds"],
        "images": round((details.get("images_per_second") or 0) * details["seconds"]),
        "input_seconds": details.get("input_seconds", 0.0),
        "resumed": details.get("resumed", 0),
        "history": read_numbers((folder / "history.csv").read_text(), whole=["epoch"]),
        "segments": list(details.get("segments", [])),
        "inexact": [*details.get("inexact", []), "the momentum was lost when the run was resumed"],
    }
    return {**details, "counters": counters, "step": details["steps"]}
