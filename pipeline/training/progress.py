"""What a training reports: the head of its log, its progress, and one line per epoch."""

from __future__ import annotations

import math

from pipeline import model
from pipeline.text import clock, counted
from pipeline.training.checkpoint import Row
from pipeline.training.session import Session


def announce(session: Session) -> None:
    """Log the first lines: run, data set, size, device and starting point."""
    note, conditions, segment = session.reporter.note, session.conditions(), session.counters.segments[-1]
    note(f"training {session.run.run_id} on {session.data_details['label']} ({session.run.dataset_id})")
    note(
        f"{model.count_parameters(session.chain.config.architecture):,} parameters, "
        f"{len(session.batches.indices):,} training and {len(session.validation[1]):,} validation images, "
        f"{counted(session.batches.steps_per_epoch, 'step')} per epoch"
    )
    workers = f"{counted(session.worker.world_size, 'worker')} with " if session.worker.world_size > 1 else ""
    amx = ", with AMX" if conditions["amx"] else ""
    note(
        f"device {session.devices.name}, precision {session.precision} ({session.precision_reason}{amx}), "
        f"{workers}{counted(conditions['threads'], 'thread')}, mxnet {conditions['versions'].get('mxnet', '?')}"
    )
    epoch, epochs, step = segment["epoch"], session.training.epochs, session.counters.step_in_epoch
    position = f"at epoch {epoch + 1} of {epochs}, step {step} of {session.batches.steps_per_epoch}"
    note(f"{segment['how']} {position if epoch < epochs else f'after the last of {epochs} epochs'}")
    for reason in session.counters.inexact:
        note(f"not bit-reproducible: {reason}")


def report(session: Session) -> bool:
    """Report the progress within the epoch. Returns False if the loss is no longer finite."""
    counters, batches, epochs = session.counters, session.batches, session.training.epochs
    loss = session.network.last_loss()
    if loss is not None and not math.isfinite(loss):
        return False
    done = counters.epoch + counters.step_in_epoch / batches.steps_per_epoch
    seen = int(batches.bounds[counters.step_in_epoch])
    speed = seen / counters.epoch_seconds if counters.epoch_seconds else 0.0
    left = (epochs - done) * len(batches.indices) / speed if speed else 0.0
    validation = counters.history[-1]["validation_accuracy"] if counters.history else None
    session.reporter.progress(
        done / epochs,
        f"epoch {counters.epoch + 1}/{epochs}, step {counters.step_in_epoch}/{batches.steps_per_epoch}, "
        f"loss {'-' if loss is None else f'{loss:.3f}'}"
        + (f", validation accuracy {validation:.1%}" if validation is not None else "")
        + f", {speed:,.0f} images/s, {clock(left)} left",
        epoch=counters.epoch + 1,
        step=counters.step,
        loss=loss,
        images_per_second=speed,
        seconds_left=left,
    )
    return True


def epoch_line(row: Row, epochs: int) -> str:
    """Format an epoch's row of the history as a log line."""
    validation = ""
    if row["validation_loss"] is not None:
        validation = f"validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}, "
    return (
        f"epoch {row['epoch']}/{epochs}: train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}, "
        f"{validation}learning rate {row['learning_rate']:.3g}, {row['images_per_second']:,.0f} images/s, "
        f"{row['seconds']:.1f} s"
    )
