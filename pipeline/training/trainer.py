"""The training loop: epochs of steps, with a validation after each epoch and checkpoints in between."""

from __future__ import annotations

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
    """Train until `training.epochs` are reached and publish the result; gives the manifest.

    Resumes from the newest good checkpoint, else from the finished run when `epochs` were raised; else starts from
    `options["init_from"]` (a warm start) or `training.init_from`, else from the configured initialisation. Raises
    `Interrupted` after writing a checkpoint when asked to stop, `TrainingDiverged` when the loss is no longer finite.
    """
    run = chain.run()
    if run is None:
        raise PipelineError("the data set is not there yet: run the DownloadCifar task first")
    options = options or {}
    if "rank" in options:
        distributed.die_with_supervisor(options["supervisor"], is_leader=options["rank"] == 0)
        return _train(chain, run, reporter, options)
    where = rendezvous.placement(chain.config, launched="launched" in options)
    if not where.is_leader:
        return distributed.supervise(chain, reporter, options, where)
    # The run's own lock: the process of a luigi command that was killed may still be writing its checkpoint.
    with locks.hold(run.job_lock, f"train {run.run_id}", True, functools.cache(reporter.note), child.LOCK_SECONDS):
        if not chain.why("train"):
            reporter.note("another process has finished this training meanwhile")
            rendezvous.announce_finished(reporter, where)
            return manifest.read(run.stage("train")) or {}
        if chain.config.distributed.workers > 1:
            return distributed.supervise(chain, reporter, options, where)
        return _train(chain, run, reporter, options)


def _train(chain: Chain, run: Run, reporter: Reporter, options: dict[str, Any]) -> dict[str, Any]:
    training = chain.config.training
    worker = Worker(options.get("rank", 0), chain.config.distributed.workers)
    reporter.quiet = not worker.is_leader
    # Made now rather than after the first epoch: it raises when tensorboardX is not installed.
    curves = tensorboard.Curves(run.curves) if training.tensorboard else None
    session = open_session(chain, run, reporter, worker)
    resuming.start(session, options.get("init_from") or training.init_from)
    progress.announce(session)
    trainer = Trainer(session, curves if worker.is_leader else None)
    while session.counters.epoch < training.epochs:
        trainer.train_epoch()
        if reporter.take("stop-after-epoch") and session.counters.epoch < training.epochs:
            trainer.stop("stopped after an epoch as asked")
    session.group.leave()
    reporter.activity = FINISHING
    if not worker.is_leader:
        return {}
    reporter.send("finishing")
    trainer.checkpoint(wait=True)
    return publishing.publish(session, resuming.save(session))


class Trainer:
    """The loop over one epoch, its checkpoints and what it obeys."""

    def __init__(self, session: Session, curves: tensorboard.Curves | None) -> None:
        self.session, self.curves = session, curves
        self.writer = checkpoint.Writer(session.run.checkpoints)
        self.last_checkpoint = time.monotonic()

    def train_epoch(self) -> None:
        """Train from where the counters are to the end of the epoch; add its row to the history."""
        session, counters, batches = self.session, self.session.counters, self.session.batches
        started = time.monotonic() - counters.epoch_seconds
        last_told = 0.0
        for images, labels in batches.epoch(counters.epoch, counters.step_in_epoch):
            count = batches.size(counters.step_in_epoch)
            session.network.step(images, labels, session.learning_rate(), counters.step, count)
            counters.step += 1
            counters.step_in_epoch += 1
            counters.images += count
            counters.input_seconds += batches.waited
            batches.waited = 0.0
            session.reporter.activity += 1
            moment = time.monotonic()
            counters.epoch_seconds = moment - started
            if moment - last_told >= 1:
                last_told = moment
                if not progress.tell(session):
                    self._diverged()
            if session.worker.is_leader:
                self._obey(moment)
        self._end_epoch(started)

    def _obey(self, moment: float) -> None:
        """Stop, or write a checkpoint, when asked or when it is time. Only the leader is asked."""
        self._stop_if_asked()
        self.writer.check()
        if self.session.reporter.take("checkpoint"):
            path = self.checkpoint(wait=True)
            self.session.reporter.note(f"checkpoint written as asked: {path.name}, {self._place()}")
        elif moment - self.last_checkpoint >= self.session.training.checkpoint_seconds and not self.writer.busy:
            self.checkpoint()

    def _stop_if_asked(self) -> None:
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
        # Stopped in here, all steps of the epoch are done but its row is missing: the next process adds it.
        validation_loss, validation_accuracy = session.network.evaluate(
            *session.validation, session.normalisation, training.batch_size, between=self._stop_if_asked
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
        session.reporter.note(progress.readable(row, training.epochs))
        if self.curves is not None:
            self.curves.write(counters.history)

    def checkpoint(self, wait: bool = False) -> Path:
        """Write a checkpoint now (in a thread unless `wait`)."""
        snapshot = resuming.save(self.session)
        self._check_finite()
        # The update after the last finite loss may have ruined the weights: do not keep them as a checkpoint.
        if not snapshot.is_finite():
            self._diverged()
        self.last_checkpoint = time.monotonic()
        return self.writer.write(snapshot, wait)

    def stop(self, why: str) -> None:
        """Write a checkpoint and raise `Interrupted`."""
        self.checkpoint(wait=True)
        raise Interrupted(f"{why}: checkpoint written at {self._place()}; run the same command again to resume")

    def _place(self) -> str:
        counters, steps = self.session.counters, self.session.batches.steps_per_epoch
        return f"epoch {counters.epoch + 1}, step {counters.step_in_epoch} of {steps}"

    def _check_finite(self) -> None:
        if not all(math.isfinite(loss) for loss, _ in self.session.counters.sums):
            self._diverged()

    def _diverged(self) -> None:
        counters = self.session.counters
        self.writer.finish()
        kept = checkpoint.paths(self.session.run.checkpoints)
        good = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint was written before"
        raise TrainingDiverged(
            f"the loss is no longer a finite number at epoch {counters.epoch + 1}, step {counters.step} (learning rate "
            f"{self.session.learning_rate():.4g}); {good}; lower training.learning_rate, "
            "which starts the training anew"
        )
