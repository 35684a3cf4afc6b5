"""Reasons why the weights may not be bit-identical to those of an uninterrupted training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.config import Training, recorded_training
from pipeline.text import counted
from pipeline.training.schedule import depends_on_total, learning_rate
from pipeline.training.session import Session
from pipeline.workspace.freshness import config_changes

#: Conditions on which the bits of a result depend, each with the preposition (and noun, for numbers) for messages.
_CONDITIONS = {
    "threads": ("with", "thread"),
    "workers": ("with", "worker"),
    "device": ("on", ""),
    "precision": ("in", ""),
    "cpu": ("on", ""),
    "matrix unit": ("with", ""),
    "libraries": ("with", ""),
}


def changed_conditions(session: Session, saved: Mapping[str, Any]) -> list[str]:
    """Reasons why the bits may differ from now on from those of an uninterrupted training."""
    counters, training = session.counters, session.training
    reasons = []
    then, current = (_comparable(value) for value in (saved, session.conditions()))
    for key, (preposition, noun) in _CONDITIONS.items():
        if then[key] != current[key]:
            shown = counted(current[key], noun) if noun else current[key]
            reasons.append(f"resumed {preposition} {shown} instead of {then[key]} (step {counters.step})")
    images, batch = len(session.batches.indices), session.batches.size(0)
    if "last_batch" not in saved and batch < min(training.batch_size, images):  # before batches could be evened out
        old = counted(images % training.batch_size, "image")
        reasons.append(f"resumed with batches of {batch} instead of a last one of {old} (step {counters.step})")
    last = counters.segments[-1] if counters.segments else None
    if last and last["epochs"] != training.epochs and depends_on_total(training):
        reasons.append(
            f"training.epochs changed from {last['epochs']} to {training.epochs} at step {counters.step}: the "
            f"{training.schedule.kind} schedule depends on the total number of epochs, so the steps before followed "
            "another curve"
        )
    return reasons


def changed_since(session: Session, finished: dict[str, Any]) -> list[str]:
    """Changes to the configuration since the run finished that would have changed its result."""
    changed = [line for line in config_changes(finished, session.chain.config) if line.startswith("training.")]
    recorded = recorded_training(finished["details"]["config"]["training"])
    with contextlib.suppress(msgspec.ValidationError):
        then = msgspec.convert({**recorded, "epochs": session.training.epochs}, Training)
        per_epoch, steps = session.batches.steps_per_epoch, range(finished["details"]["steps"])
        if all(
            learning_rate(then, step, per_epoch) == learning_rate(session.training, step, per_epoch) for step in steps
        ):
            # for example, a milestone that lies ahead
            changed = [line for line in changed if not line.startswith("training.schedule.")]
    return changed


def _comparable(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions, reduced to the libraries that compute the result. Old files lack some keys."""
    versions = conditions["versions"]
    libraries = (f"{name} {versions[name]}" for name in sorted(versions) if name.startswith(("mxnet", "numpy")))
    known = {key: conditions.get(key) for key in _CONDITIONS}
    return known | {
        "workers": conditions.get("workers", 1),
        "matrix unit": "AMX" if conditions.get("amx") else "no AMX",
        "libraries": ", ".join(libraries),
    }
