"""Resuming: what is saved of a training, and how another process takes over from it.

`save` and `put_back` mirror each other: what one saves in a step, the other restores in the step of the same number.
Random numbers need no saving: every step draws them from the seed and its own number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import Training, differences, recorded_training, to_dict, to_record
from pipeline.errors import WorkspaceError
from pipeline.files import move, now, sha256_file
from pipeline.model import weights, whitening
from pipeline.tables import read_numbers
from pipeline.text import counted
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Counters, Damaged, Snapshot
from pipeline.training.schedule import depends_on_total, learning_rate
from pipeline.training.session import Session
from pipeline.workspace import manifest
from pipeline.workspace.freshness import OPERATIONAL_KEYS, config_changes, trained_epochs

#: Conditions on which the bits of a result depend; the preposition, and for a number the noun, to tell a change.
_CONDITIONS = {
    "threads": ("with", "thread"),
    "workers": ("with", "worker"),
    "device": ("on", ""),
    "precision": ("in", ""),
    "cpu": ("on", ""),
    "libraries": ("with", ""),
}


# --- saving and restoring -----------------------------------------------------------------------------------------


def save(session: Session) -> Snapshot:
    """The whole state of a training, as plain arrays and JSON. Waits for the computations in flight."""
    counters = session.counters
    # 1. Weights, running statistics, momentum buffers, loss scale.
    parameters, optimizer_state = session.network.state()
    # 2. The counters, with the sums of the epoch in progress, which are on the devices.
    counters.sums = session.network.sums() if counters.step_in_epoch else []
    meta: dict[str, Any] = {"counters": asdict(counters), "step": counters.step}
    # 3. Which training this is.
    meta["identity"] = _identity(session)
    # 4. The conditions on which the bits depend.
    meta |= session.conditions()
    # For whoever looks into the file; not restored.
    meta |= {
        "config": to_record(session.chain.config),
        "learning_rate": session.learning_rate(),
        "seed": session.training.seed,
    }
    return Snapshot(parameters, optimizer_state, meta)


def put_back(session: Session, snapshot: Snapshot) -> None:
    """Restore what `save` saved."""
    # 1. Weights, running statistics, momentum buffers, loss scale.
    session.network.set_state(snapshot.parameters, snapshot.optimizer_state)
    # 2. The counters, with the sums of the epoch in progress, which are on the devices.
    counters = session.counters = Counters(**snapshot.meta["counters"])
    session.network.start_epoch(counters.sums)
    counters.resumed += 1
    # 3. Which training this is: only what matches is found, see `_why_not`.
    # 4. The conditions on which the bits depend: a change is noted.
    counters.inexact += _changed_conditions(session, snapshot.meta)


def restore(session: Session, init_from: str | None) -> None:
    """Put a training where it was left, or begin it from the file `init_from` or as configured."""
    session.network.initialize(session.training.seed)
    session.network.start_epoch([])
    with session.group.leader_first():  # it may move a checkpoint that does not belong to this training
        if found := _newest_checkpoint(session) or _finished_run(session):
            snapshot, how = found
            put_back(session, snapshot)
        else:
            how = _begin(session, init_from)
    parameters, optimizer_state = session.network.state()
    optimizer_state = {f"momentum {name}": value for name, value in optimizer_state.items()}
    counters = session.counters
    session.group.check_same("state", {**parameters, **optimizer_state}, counters.step)
    counters.segments.append(
        {
            "how": how,
            "step": counters.step,
            "epoch": counters.epoch,
            "epochs": session.training.epochs,
            "schedule": session.training.schedule.kind,
            "started": now(),
            **session.conditions(),
        }
    )


def _begin(session: Session, init_from: str | None) -> str:
    if init_from is not None:
        weights.load(session.network.net, Path(init_from), session.devices.contexts)
        return f"started from {init_from}"
    if session.training.initializer == "whitening":
        images = session.batches.images[session.batches.indices[: whitening.IMAGES]]
        channels = session.chain.config.architecture.conv_arch[0][1]
        session.network.replace_first_filters(whitening.filters(images, session.normalisation, channels))
    return "started"


def _identity(session: Session) -> dict[str, Any]:
    """What a checkpoint must have in common with a training that resumes from it."""
    chain = session.chain
    own = _deciding(to_dict(session.training))
    return {**chain.inputs("train"), "generation": chain.generation, "training": own}


def _deciding(training: dict[str, Any]) -> dict[str, Any]:
    """The keys of `training` that count for that."""
    return {key: value for key, value in training.items() if key not in ("epochs", "precision", *OPERATIONAL_KEYS)}


# --- where to resume from -----------------------------------------------------------------------------------------


def _newest_checkpoint(session: Session) -> tuple[Snapshot, str] | None:
    """The newest checkpoint that is whole and belongs to this training, and what to call resuming from it."""
    finished = _result_epochs(session)
    note = session.reporter.note
    for path in checkpoint.paths(session.run.checkpoints):
        try:
            snapshot = checkpoint.load(path)
            why_not = _why_not(session, snapshot)
            if not why_not:
                _check_fit(session, snapshot, path)
        except Damaged as error:
            note(f"{error}; falling back to the one before")
            if session.worker.is_leader:
                checkpoint.set_damaged_aside(path)
            continue
        if why_not:
            target = session.run.workspace.trash / f"{session.run.run_id}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            move(path, target)
            note(f"ignoring checkpoint {path.name}: {why_not}; moved to {target}")
        elif snapshot.meta["counters"]["epoch"] < finished:
            note(f"removed {path.name}: the finished training of {counted(finished, 'epoch')} is newer")
            path.unlink()
        else:
            return snapshot, f"resumed from {path.name}"
    return None


def _result_epochs(session: Session) -> int:
    """Epochs of the published result, 0 when there is none that is whole."""
    folder = session.run.stage("train")
    finished = manifest.read(folder)
    if finished is None or not checkpoint.paths(session.run.checkpoints):
        return 0
    whole = not manifest.problems(folder, "train", session.chain.inputs("train"))
    return trained_epochs(finished) if whole and not manifest.damage(folder, finished) else 0


def _why_not(session: Session, snapshot: Snapshot) -> str:
    """Why a checkpoint is that of another training; empty when it is not."""
    saved = dict(snapshot.meta["identity"])
    saved["training"] = _deciding(recorded_training(saved["training"]))
    if changed := differences(saved, _identity(session)):
        return "the configuration changed since: " + "; ".join(changed[:4])
    counters, epochs = snapshot.meta["counters"], session.training.epochs
    if counters["epoch"] > epochs or (counters["epoch"] == epochs and counters["step_in_epoch"]):
        return f"it is beyond the {counted(epochs, 'epoch')} now configured"
    return ""


def _check_fit(session: Session, snapshot: Snapshot, path: Path) -> None:
    """Raise `Damaged` for a checkpoint of this training that this training cannot have written."""
    why = session.network.misfit(snapshot.parameters, snapshot.optimizer_state)
    if not why and not snapshot.finite():
        why = "its numbers are not all finite"
    if not why and snapshot.meta["counters"]["step_in_epoch"] > session.batches.steps_per_epoch:
        why = f"it is beyond the {counted(session.batches.steps_per_epoch, 'step')} of an epoch"
    if why:
        raise Damaged(f"{path}: damaged checkpoint ({why})")


def _finished_run(session: Session) -> tuple[Snapshot, str] | None:
    """The state of the finished run, when more epochs are configured than it has."""
    folder = session.run.stage("train")
    finished = manifest.read(folder)
    # Only from a result that lacks nothing but epochs, not from a damaged or foreign one.
    if finished is None or manifest.problems(folder, "train", session.chain.inputs("train")):
        return None
    epochs = trained_epochs(finished)
    if epochs >= session.training.epochs:
        return None
    weights.load_trusted(
        session.network.net,
        folder / "model.params",
        finished["files"]["model.params"]["sha256"],
        session.devices.contexts,
    )
    parameters = session.network.state()[0]
    try:
        recorded = manifest.digests(finished).get("trainer.npz", "none")
        if sha256_file(folder / "trainer.npz") != recorded:
            raise WorkspaceError(f"{folder / 'trainer.npz'}: its content is not what the manifest recorded")
        snapshot = checkpoint.load(folder / "trainer.npz")
        snapshot.parameters.update(parameters)
        _check_fit(session, snapshot, folder / "trainer.npz")
    except (WorkspaceError, OSError) as error:
        session.reporter.note(f"{error}; resuming from model.params with zero momentum")
        snapshot = Snapshot(parameters, {}, _meta_without_trainer(folder, finished))
    snapshot.meta["counters"]["inexact"] += _changed_since(session, finished)
    return snapshot, f"resumed from {counted(epochs, 'epoch')} of {folder.name}/model.params"


def _meta_without_trainer(folder: Path, finished: dict[str, Any]) -> dict[str, Any]:
    """What `trainer.npz` says, from the other files of the finished run."""
    if damaged := manifest.damage(folder, finished):
        raise WorkspaceError(
            f"{damaged[0]}; restore it from a backup, or set the stage aside "
            "(luigi --module tasks SetAside --stage train) and train again"
        )
    details = finished["details"]
    seconds = details["seconds"]
    counters = Counters(
        step=details["steps"],
        epoch=trained_epochs(finished),
        seconds=seconds,
        images=round((details.get("images_per_second") or 0) * seconds),
        input_seconds=details.get("input_seconds", 0.0),
        resumed=details.get("resumed", 0),
        history=read_numbers((folder / "history.csv").read_text(), whole=["epoch"]),
        segments=list(details.get("segments", [])),
        inexact=[*details.get("inexact", []), "the momentum was lost when the run was resumed"],
    )
    return {**details, "counters": asdict(counters), "step": counters.step}


# --- whether the weights are those of an uninterrupted training -----------------------------------------------------


def _changed_since(session: Session, finished: dict[str, Any]) -> list[str]:
    """Changes of the configuration since the run was finished that would have changed its result."""
    changed = [line for line in config_changes(finished, session.chain.config) if line.startswith("training.")]
    recorded = recorded_training(finished["details"]["config"]["training"])
    with contextlib.suppress(msgspec.ValidationError):
        then, now = msgspec.convert({**recorded, "epochs": session.training.epochs}, Training), session.training
        per_epoch, steps = session.batches.steps_per_epoch, range(finished["details"]["steps"])
        if all(learning_rate(then, step, per_epoch) == learning_rate(now, step, per_epoch) for step in steps):
            # a milestone that is still to come, say
            changed = [line for line in changed if not line.startswith("training.schedule.")]
    return changed


def _changed_conditions(session: Session, saved: Mapping[str, Any]) -> list[str]:
    """Why the bits may differ from here on from those of an uninterrupted training."""
    counters, training = session.counters, session.training
    reasons = []
    then, now = (_comparable(value) for value in (saved, session.conditions()))
    for key, (preposition, noun) in _CONDITIONS.items():
        if then[key] != now[key]:
            current = counted(now[key], noun) if noun else now[key]
            reasons.append(f"resumed {preposition} {current} instead of {then[key]} (step {counters.step})")
    last = counters.segments[-1] if counters.segments else None
    if last and last["epochs"] != training.epochs and depends_on_total(training):
        reasons.append(
            f"training.epochs changed from {last['epochs']} to {training.epochs} at step {counters.step}: the "
            f"{training.schedule.kind} schedule depends on the total number of epochs, so the steps before followed "
            "another curve"
        )
    return reasons


def _comparable(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions with the versions of those libraries that compute the result. Old files lack some."""
    versions = conditions["versions"]
    libraries = (f"{name} {versions[name]}" for name in sorted(versions) if name.startswith(("mxnet", "numpy")))
    known = {key: conditions.get(key) for key in _CONDITIONS}
    return known | {"workers": conditions.get("workers", 1), "libraries": ", ".join(libraries)}
