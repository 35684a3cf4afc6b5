"""Resuming: what is saved of a training, and how another process takes over from it.

`save` and `restore` mirror each other: what one saves in a step, the other restores in the step of the same number.
Random numbers need no saving: every step draws them from the seed and its own number.
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
    """The whole state of a training, as plain arrays and JSON. Waits for the computations in flight."""
    counters = session.counters
    # 1. Weights, running statistics, momentum buffers, loss scale.
    parameters, optimizer_state = session.network.state()
    # 2. The counters, with the sums of the epoch in progress, which are on the devices.
    counters.sums = session.network.sums() if counters.step_in_epoch else []
    meta: dict[str, Any] = {"counters": msgspec.to_builtins(counters), "step": counters.step}
    # 3. Which training this is.
    meta["identity"] = identity(session)
    # 4. The conditions on which the bits depend.
    meta |= session.conditions()
    return Snapshot(parameters, optimizer_state, meta)


def restore(session: Session, snapshot: Snapshot) -> None:
    """Restore what `save` saved."""
    # 1. Weights, running statistics, momentum buffers, loss scale.
    session.network.set_state(snapshot.parameters, snapshot.optimizer_state)
    # 2. The counters, with the sums of the epoch in progress, which are on the devices.
    counters = session.counters = Counters(**snapshot.meta["counters"])
    session.network.start_epoch(counters.sums)
    counters.resumed += 1
    # 3. Which training this is: only what matches is found, see `resume_points`.
    # 4. The conditions on which the bits depend: a change is noted.
    counters.inexact += changed_conditions(session, snapshot.meta)


def start(session: Session, init_from: str | None) -> None:
    """Resume a training where it was left; else begin it, from the file `init_from` or as configured."""
    session.network.initialize(session.training.seed)
    session.network.start_epoch([])
    with session.group.leader_first():  # it may move a checkpoint that does not belong to this training
        if found := newest_checkpoint(session) or finished_run(session):
            snapshot, how = found
            restore(session, snapshot)
        else:
            how = _begin(session, init_from)
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


def _begin(session: Session, init_from: str | None) -> str:
    if init_from is not None:
        weights.load(session.network.net, Path(init_from), session.devices.contexts)
        return f"started from {init_from}"
    if session.training.initializer == "whitening":
        images = session.batches.images[session.batches.indices[: whitening.IMAGES]]
        shape = session.network.parameters["0.0.weight"].shape
        session.network.replace_first_filters(whitening.filters(images, session.normalisation, shape))
    return "started"
