"""Resuming: save the state of a training and restore it in another process.

The numbered steps of `save` and `restore` mirror each other. There is no random state to save, because every training
step seeds its random numbers from the seed and its own number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pipeline.files import now
from pipeline.model import weights, whitening
from pipeline.training.checkpoint import Counters, Snapshot
from pipeline.training.reproducibility import changed_conditions
from pipeline.training.resume_points import finished_run, identity, newest_checkpoint
from pipeline.training.session import Session


def save(session: Session) -> Snapshot:
    """Return the whole state of a training as plain arrays and JSON. Waits for pending computations."""
    counters = session.counters
    # 1. Weights, running statistics, momentum buffers, loss scale.
    parameters, optimizer_state = session.network.state()
    # 2. The counters, with the current epoch's sums, which live on the devices.
    counters.sums = session.network.sums() if counters.step_in_epoch else []
    meta: dict[str, Any] = {"counters": msgspec.to_builtins(counters), "step": counters.step}
    # 3. The identity of the training.
    meta["identity"] = identity(session)
    # 4. The conditions on which the bits depend.
    meta |= session.conditions()
    return Snapshot(parameters, optimizer_state, meta)


def restore(session: Session, snapshot: Snapshot) -> None:
    """Restore the state that `save` returned."""
    # 1. Weights, running statistics, momentum buffers, loss scale.
    session.network.set_state(snapshot.parameters, snapshot.optimizer_state)
    # 2. The counters, with the current epoch's sums, which live on the devices.
    counters = session.counters = Counters(**snapshot.meta["counters"])
    session.network.start_epoch(counters.sums)
    counters.resumed += 1
    # 3. The identity of the training: `resume_points` has checked it.
    # 4. The conditions on which the bits depend: record changes.
    counters.inexact += changed_conditions(session, snapshot.meta)


def start(session: Session, init_from: str | None) -> None:
    """Resume a training where it stopped; otherwise start it, from the file `init_from` or as configured."""
    session.network.initialize(session.training.seed)
    session.network.start_epoch([])
    with session.group.leader_first():  # the leader may move checkpoints of another configuration
        if resume_point := newest_checkpoint(session) or finished_run(session):
            snapshot, how = resume_point
            restore(session, snapshot)
        else:
            how = _initialize(session, init_from)
    parameters, optimizer_state = session.network.state()
    optimizer_state = {f"momentum {name}": value for name, value in optimizer_state.items()}
    counters = session.counters
    session.group.check_same({**parameters, **optimizer_state}, counters.step)
    counters.segments.append(
        {
            "how": how,
            "step": counters.step,
            "epoch": counters.epoch,
            "epochs": session.training.epochs,
            "schedule": session.training.schedule.kind,
            "started": now(),
            **session.conditions(),  # type: ignore[typeddict-item]
        }
    )


def _initialize(session: Session, init_from: str | None) -> str:
    """Set the initial weights and return a line for the log."""
    if init_from is not None:
        weights.load(session.network.net, Path(init_from), session.devices.contexts)
        return f"started from {init_from}"
    if session.training.initializer == "whitening":
        images = session.batches.images[session.batches.indices[: whitening.IMAGES]]
        shape = session.network.parameters["0.0.weight"].shape
        session.network.replace_first_filters(whitening.filters(images, session.normalisation, shape))
    return "started"
