"""The training loop: epochs of steps, with checkpoints in between and validation after each epoch."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, PipelineError, TrainingDiverged
from pipeline.process import child
from pipeline.process.reporter import FINISHING, Reporter
from pipeline.storage import locks
from pipeline.training import checkpoint, distributed, progress, publishing, rendezvous, resuming, tensorboard
from pipeline.training.gradient_sync import Worker
from pipeline.training.schedule import learning_rate
from pipeline.training.session import Session, open_session
from pipeline.workspace import Run, manifest
from pipeline.workspace.freshness import Chain


def train(chain: Chain, reporter: Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train up to `training.epochs`, publish the result and return its manifest.

    Resumes from the newest intact checkpoint or the finished run (if `epochs` were raised); otherwise starts from
    `options["init_from"]` (a warm start), `training.init_from` or the configured initialisation. Raises `Interrupted`
    after writing a checkpoint if asked to stop, and `TrainingDiverged` if the loss is no longer finite.
    """
    run = chain.run()
    if run is None:
        raise PipelineError("the data set does not exist yet: run the DownloadCifar task first")
    options = options or {}
    if "rank" in options:
        distributed.die_with_supervisor(options["supervisor"], is_leader=options["rank"] == 0)
        return _train(chain, run, reporter, options)
    placement = rendezvous.find_placement(chain.config, launched="launched" in options)
    if not placement.is_leader:
        return distributed.supervise(chain, reporter, options, placement)
    # Lock the run: the process of a killed luigi command may still be writing its checkpoint.
    with locks.hold(run.job_lock, f"train {run.run_id}", True, functools.cache(reporter.note), child.LOCK_SECONDS):
        if not chain.why("train"):
            reporter.note("another process has finished this training in the meantime")
            rendezvous.announce_finished(reporter, placement)
            return manifest.read(run.stage("train")) or {}
        if chain.config.distributed.workers > 1:
            return distributed.supervise(chain, reporter, options, placement)
        return _train(chain, run, reporter, options)


def _train(chain: Chain, run: Run, reporter: Reporter, options: dict[str, Any]) -> dict[str, Any]:
    training = chain.config.training
    worker = Worker(options.get("rank", 0), chain.config.distributed.workers)
    reporter.quiet = not worker.is_leader
    # Fail now rather than after the first epoch if tensorboardX is not installed.
    curves = tensorboard.Curves(run.curves) if training.tensorboard else None
    session = open_session(chain, run, reporter, worker)
    resuming.start(session, options.get("init_from") or training.init_from)
    progress.announce(session)
    trainer = Trainer(session, curves if worker.is_leader else None)
    while session.counters.epoch < training.epochs:
        trainer.train_epoch()
        if reporter.take("stop-after-epoch") and session.counters.epoch < training.epochs:
            trainer.stop("stopped on request after an epoch")
    session.group.leave()
    reporter.activity = FINISHING
    if not worker.is_leader:
        return {}
    reporter.send("finishing")
    trainer.checkpoint(wait=True)
    return publishing.publish(session, resuming.save(session))


class Trainer:
    """Trains epoch by epoch, writes checkpoints and handles commands."""

    def __init__(self, session: Session, curves: tensorboard.Curves | None) -> None:
        self.session, self.curves = session, curves
        self.writer = checkpoint.Writer(session.run.checkpoints)
        self.last_checkpoint = time.monotonic()

    def train_epoch(self) -> None:
        """Train from the current step to the end of the epoch, and add its row to the history."""
        session, counters, batches = self.session, self.session.counters, self.session.batches
        started = time.monotonic() - counters.epoch_seconds
        last_report = 0.0
        for images, labels in batches.epoch(counters.epoch, counters.step_in_epoch):
            count = batches.size(counters.step_in_epoch)
            session.network.step(images, labels, session.learning_rate(), counters.step, count)
            counters.step += 1
            counters.step_in_epoch += 1
            counters.images += count
            counters.input_seconds += batches.waited
            batches.waited = 0.0
            session.reporter.activity += 1
            now = time.monotonic()
            counters.epoch_seconds = now - started
            if now - last_report >= 1:
                last_report = now
                if not progress.report(session):
                    self._raise_diverged()
            if session.worker.is_leader:
                self._handle_commands(now)
        self._end_epoch(started)

    def _handle_commands(self, now: float) -> None:
        """Stop or write a checkpoint if requested; also write one when it is due. Only the leader gets commands."""
        self._stop_if_requested()
        self.writer.check()
        if self.session.reporter.take("checkpoint"):
            path = self.checkpoint(wait=True)
            self.session.reporter.note(f"checkpoint written on request: {path.name}, {self._position()}")
        elif now - self.last_checkpoint >= self.session.training.checkpoint_seconds and not self.writer.busy:
            self.checkpoint()

    def _stop_if_requested(self) -> None:
        self.session.reporter.activity += 1
        if self.session.reporter.stopping and self.session.worker.is_leader:
            self.stop("stopped on request")

    def _end_epoch(self, started: float) -> None:
        session, counters = self.session, self.session.counters
        training, batches = session.training, session.batches
        counters.sums = session.network.sums()
        self._check_finite()
        counters.epoch_seconds = time.monotonic() - started
        count = len(batches.indices)
        loss_sum, correct = (sum(values) for values in zip(*counters.sums, strict=True))
        # If this is interrupted, the epoch's steps are done but its row is missing: the next process adds it.
        validation_loss, validation_accuracy = session.network.evaluate(
            *session.validation, session.normalisation, training.batch_size, between=self._stop_if_requested
        )
        row: checkpoint.Row = {
            "epoch": counters.epoch + 1,
            "train_loss": loss_sum / count,
            "train_accuracy": correct / count,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "learning_rate": learning_rate(training, counters.step - 1, batches.steps_per_epoch),
            "images_per_second": count / counters.epoch_seconds,
            "seconds": counters.epoch_seconds,
        }
        counters.end_epoch(row)
        session.network.start_epoch([])
        session.reporter.note(progress.epoch_line(row, training.epochs))
        if self.curves is not None:
            self.curves.write(counters.history)

    def checkpoint(self, wait: bool = False) -> Path:
        """Write a checkpoint, in a thread unless `wait`, and return its path."""
        snapshot = resuming.save(self.session)
        self._check_finite()
        # The update after the last finite loss may have ruined the weights: never write those.
        if not snapshot.is_finite():
            self._raise_diverged()
        self.last_checkpoint = time.monotonic()
        return self.writer.write(snapshot, wait)

    def stop(self, reason: str) -> None:
        """Write a checkpoint and raise `Interrupted`."""
        self.checkpoint(wait=True)
        raise Interrupted(f"{reason}: checkpoint written at {self._position()}; run the same command again to resume")

    def _position(self) -> str:
        counters, steps = self.session.counters, self.session.batches.steps_per_epoch
        return f"epoch {counters.epoch + 1}, step {counters.step_in_epoch} of {steps}"

    def _check_finite(self) -> None:
        if not all(math.isfinite(loss) for loss, _ in self.session.counters.sums):
            self._raise_diverged()

    def _raise_diverged(self) -> None:
        with contextlib.suppress(PipelineError):  # a failed write must not hide the cause
            self.writer.finish()
        paths = checkpoint.paths(self.session.run.checkpoints)
        last_good = f"the last good checkpoint is {paths[0]}" if paths else "no checkpoint was written before"
        raise TrainingDiverged(
            f"the loss is no longer a finite number at {self._position()} (learning rate "
            f"{self.session.learning_rate():.4g}); {last_good}; lower training.learning_rate, "
            "which restarts the training from scratch"
        )
