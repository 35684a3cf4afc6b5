"""Training: the data set's arrays and a configuration in, `train/` of a run out.

Leaves `model.params`, `trainer.npz` (momentum and counters, for going on later), `history.csv`, `config.yaml` and the
manifest; checkpoints under `work/` while it runs. Run as `python -m pipeline.training` by `launch.run_stage`.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from pipeline import dataset, model, runtime
from pipeline.config import Training, differences, recorded_training, to_dict, to_record
from pipeline.dataset import batches
from pipeline.errors import ConfigError, Interrupted, PipelineError, TrainingDiverged, WorkspaceError, from_os_error
from pipeline.files import move, now, sha256_file, write_atomically
from pipeline.model import weights, whitening
from pipeline.process import child
from pipeline.storage import locks
from pipeline.tables import csv_text, read_numbers
from pipeline.training import checkpoint, distributed, precision, tensorboard
from pipeline.training.checkpoint import Counters, Damaged, Snapshot
from pipeline.training.gradient_sync import Exchange, Share
from pipeline.training.network import Network
from pipeline.training.schedule import depends_on_total, learning_rate
from pipeline.workspace import MANIFEST, Run, manifest
from pipeline.workspace.freshness import OPERATIONAL_KEYS, Chain, config_changes, trained_epochs

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "images_per_second",
    "seconds",
)


def train(chain: Chain, reporter: child.Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train until `training.epochs` are reached and publish the result; gives the manifest.

    Goes on from the newest good checkpoint, else from the finished run when `epochs` were raised, else from
    `options["init_from"]` (a warm start) or `training.init_from`, else from the configured initialisation. Raises
    `Interrupted` after writing a checkpoint when asked to stop, `TrainingDiverged` when the loss is no longer finite.
    """
    run = chain.run()
    if run is None:
        raise PipelineError("the data set is not there yet: run the DownloadCifar task first")
    options = options or {}
    if "rank" in options:
        distributed.follow_supervisor(options["supervisor"], options["rank"])
        return _train(chain, run, reporter, options)
    place = distributed.place(chain.config, launched="launched" in options)
    if not place.leads:
        return distributed.supervise(chain, reporter, options, place)
    with _alone(run, reporter):
        if not chain.why("train"):
            reporter.note("another process has finished this training meanwhile")
            distributed.dismiss(reporter, place)
            return manifest.read(run.stage("train")) or {}
        if chain.config.distributed.workers > 1:
            return distributed.supervise(chain, reporter, options, place)
        return _train(chain, run, reporter, options)


def _alone(run: Run, reporter: child.Reporter) -> contextlib.AbstractContextManager[int]:
    """Hold the run's own lock: a job of a Luigi that died may still be there until it has noticed and checkpointed."""
    return locks.hold(run.job_lock, f"train {run.run_id}", True, reporter.note, child.LOCK_SECONDS)


def _train(chain: Chain, run: Run, reporter: child.Reporter, options: dict[str, Any]) -> dict[str, Any]:
    share = Share(options.get("rank", 0), chain.config.distributed.workers)
    reporter.quiet = not share.leads
    session = Session(chain, run, reporter, share)
    session.restore(options.get("init_from") or chain.config.training.init_from)
    session.announce()
    while session.counters.epoch < chain.config.training.epochs:
        session.train_epoch()
        if reporter.take("stop-after-epoch") and session.counters.epoch < chain.config.training.epochs:
            session.stop("stopped after an epoch as asked")
    session.exchange.leave()
    reporter.activity = child.FINISHING
    return session.publish() if share.leads else {}


class Session:
    """One process's part of a training: network, batches, counters, and how they are saved and restored."""

    def __init__(self, chain: Chain, run: Run, reporter: child.Reporter, share: Share) -> None:
        self.chain, self.run, self.reporter, self.share = chain, run, reporter, share
        self.training = chain.config.training
        # Made now rather than after the first epoch: it says when what it needs is not installed.
        self.curves = tensorboard.Curves(run.curves) if self.training.tensorboard else None
        self.devices = runtime.devices(chain.config.device)
        runtime.adapt_to_load(reporter.write if share.leads else lambda line: None)
        self.exchange = Exchange(runtime.mxnet(), self.devices, share)
        with self.exchange.lead_first():
            self.precision, self.why_precision = precision.choose(
                chain.config.architecture, self.training, self.devices, run
            )
        data = dataset.load(run.workspace.dataset(run.dataset_id), verify=True)
        # The same images can come from several sources; what they are called is a matter of the configured one.
        record = chain.source_record() or {}
        self.about_data = {**data.manifest["details"], **{k: record[k] for k in ("label", "official") if k in record}}
        if len(data.classes) > chain.config.architecture.classes:
            raise ConfigError(
                f"architecture.classes: found {chain.config.architecture.classes}, but {run.dataset_id} has "
                f"{len(data.classes)} classes"
            )
        train_indices, validation_indices = batches.split(
            data.train_labels, min(self.training.validation_images, len(data.train_labels) // 2), self.training.seed
        )
        self.norm = self._normalisation(data.train_images)
        self.batches = batches.TrainingBatches(
            data.train_images, data.train_labels, train_indices, self.training, self.norm, (share.rank, share.workers)
        )
        self.validation = (data.train_images[validation_indices], data.train_labels[validation_indices])
        self.network = Network(chain.config.architecture, self.training, self.devices, self.precision, self.exchange)
        if self.devices.is_gpu:
            self.network.hold(data.train_images, self.norm)
        self.counters = Counters()
        self.writer = checkpoint.Writer(run.checkpoints)
        self.last_checkpoint = self.epoch_started = time.monotonic()
        self.last_curves = 0.0

    # --- starting, saving, restoring ----------------------------------------------------------------------------

    def restore(self, init_from: str | None) -> None:
        """Put the training where it was left, or begin it. The steps mirror `snapshot`."""
        self.network.initialize(self.training.seed)
        with self.exchange.lead_first():  # it may move a checkpoint that does not belong to this training
            how = self._put_back(init_from)
        parameters, momenta = self.network.state()
        momenta = {f"momentum {name}": value for name, value in momenta.items()}
        self.exchange.check_same("state", {**parameters, **momenta}, self.counters.step)
        self.counters.segments.append(
            {
                "how": how,
                "step": self.counters.step,
                "epoch": self.counters.epoch,
                "epochs": self.training.epochs,
                "schedule": self.training.schedule.kind,
                "started": now(),
                **self._conditions(),
            }
        )

    def _put_back(self, init_from: str | None) -> str:
        """Load what is there to go on from, and give what to call that."""
        found = self._newest_checkpoint() or self._finished_run()
        if found is not None:
            snapshot, how = found
            self.network.set_state(snapshot.parameters, snapshot.momenta)
            saved = Counters(**snapshot.meta["counters"])
            self.counters = saved
            self.counters.resumed += 1
            self._note_inexactness(snapshot.meta)
            return how
        if init_from is not None:
            path = Path(init_from)
            weights.load(self.network.net, path, self.devices.contexts)
            return f"started from {path}"
        if self.training.initializer == "whitening":
            self._whiten()
        return "started"

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs, as plain arrays and JSON. Waits for the computations in flight."""
        self._collect()
        parameters, momenta = self.network.state()
        meta = {
            "identity": self.identity(),
            "config": to_record(self.chain.config),
            "counters": asdict(self.counters),
            "step": self.counters.step,
            "learning_rate": self._learning_rate(),
            "seed": self.training.seed,
            **self._conditions(),
        }
        return Snapshot(parameters, momenta, meta)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with this training so that it can be gone on from."""
        own = _deciding(to_dict(self.training))
        return {**self.chain.inputs("train"), "generation": self.chain.generation, "training": own}

    def checkpoint(self, wait: bool = False) -> Path:
        """Write a checkpoint now (in a thread unless `wait`)."""
        snapshot = self.snapshot()
        self._check_finite()
        # The update after the last finite loss may have spoilt the weights: such a checkpoint is none to go back to.
        if not snapshot.finite():
            self._diverged()
        self.last_checkpoint = time.monotonic()
        return self.writer.write(snapshot, wait)

    def stop(self, why: str) -> None:
        """Write a checkpoint and raise `Interrupted`."""
        self.checkpoint(wait=True)
        done = f"epoch {self.counters.epoch + 1}, step {self.counters.step_in_epoch} of {self.batches.steps_per_epoch}"
        raise Interrupted(f"{why}: checkpoint written at {done}; run the same command again to go on")

    # --- one epoch ----------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Train from where the counters are to the end of the epoch; add its row to the history."""
        counters, network = self.counters, self.network
        self.epoch_started = time.monotonic() - counters.epoch_seconds
        network.start_epoch(counters.sums)
        last_told = 0.0
        source = self.batches.plans if self.devices.is_gpu else self.batches.epoch
        for images, labels in source(counters.epoch, counters.step_in_epoch):
            rate = self._learning_rate()
            count = self.batches.size(counters.step_in_epoch)
            network.step(images, labels, rate, counters.step, count)
            counters.step += 1
            counters.step_in_epoch += 1
            counters.images += count
            counters.input_seconds += self.batches.waited
            self.batches.waited = 0.0
            self.reporter.activity += 1
            moment = time.monotonic()
            counters.epoch_seconds = moment - self.epoch_started
            if moment - last_told >= 1:
                last_told = moment
                self._tell(rate)
            self._obey(moment)
        self._end_epoch()

    def _obey(self, moment: float) -> None:
        """Checkpoint when it is time or was asked for; stop when that was asked for. Only the lead is asked."""
        if not self.share.leads:
            return
        self._stop_if_asked()
        self.writer.check()
        due = moment - self.last_checkpoint >= self.training.checkpoint_seconds and not self.writer.busy
        if self.reporter.take("checkpoint") or due:
            self.checkpoint()

    def _stop_if_asked(self) -> None:
        self.reporter.activity += 1
        if self.reporter.stopping and self.share.leads:
            self.stop("stopped on request")

    def _end_epoch(self) -> None:
        counters = self.counters
        rate = learning_rate(self.training, counters.step - 1, self.batches.steps_per_epoch)
        self._collect()
        self._check_finite()
        counters.epoch_seconds = time.monotonic() - self.epoch_started
        count = len(self.batches.indices)
        loss_sum, correct = (sum(values) for values in zip(*counters.sums, strict=True))
        # Stopped in here, the epoch's steps are done and its row is not written: the next process writes it.
        loss, accuracy = self.network.evaluate(
            *self.validation, self.norm, self.training.batch_size, between=self._stop_if_asked
        )
        row = {
            "epoch": counters.epoch + 1,
            "train_loss": loss_sum / count,
            "train_accuracy": correct / count,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "learning_rate": rate,
            "images_per_second": count / counters.epoch_seconds,
            "seconds": counters.epoch_seconds,
        }
        counters.history.append(row)
        counters.seconds += counters.epoch_seconds
        counters.epoch += 1
        counters.step_in_epoch, counters.epoch_seconds = 0, 0.0
        counters.sums = []
        self.reporter.note(_readable(row, self.training.epochs))
        if self.curves is not None and self.share.leads:
            self._write_curves(self.curves)

    def _write_curves(self, curves: tensorboard.Curves) -> None:
        """Bring the TensorBoard file up to date, every few seconds and after the last epoch."""
        last = self.counters.epoch >= self.training.epochs
        if last or time.monotonic() - self.last_curves >= tensorboard.WRITE_SECONDS:
            curves.write(self.counters.history)
            self.last_curves = time.monotonic()

    # --- telling ------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """The lines at the head of the log: what is trained, on what, with what, from where."""
        architecture = self.chain.config.architecture
        note = self.reporter.note
        note(f"training {self.run.run_id} on {self.about_data['label']} ({self.run.dataset_id})")
        note(
            f"{model.count_parameters(architecture):,} parameters, {len(self.batches.indices):,} training and "
            f"{len(self.validation[1]):,} validation images, {self.batches.steps_per_epoch} steps an epoch"
        )
        conditions = self._conditions()
        note(
            f"device {conditions['device']}, precision {self.precision} ({self.why_precision}), "
            + (f"{self.share.workers} workers with " if self.share.workers > 1 else "")
            + f"{conditions['threads']} threads, mxnet {conditions['versions'].get('mxnet', '?')}"
        )
        segment = self.counters.segments[-1]
        note(f"{segment['how']} at epoch {segment['epoch']} of {self.training.epochs}, step {segment['step']}")
        for reason in self.counters.inexact:
            note(f"exactness is off: {reason}")

    def _tell(self, rate: float) -> None:
        counters = self.counters
        done = counters.epoch + counters.step_in_epoch / self.batches.steps_per_epoch
        seen = counters.step_in_epoch * self.batches.batch_size
        speed = seen / counters.epoch_seconds if counters.epoch_seconds else 0.0
        left = (self.training.epochs - done) * len(self.batches.indices) / speed if speed else 0.0
        last = counters.history[-1] if counters.history else {}
        loss = self.network.recent_loss()
        if loss is not None and not math.isfinite(loss):
            self._diverged()
        validation = last.get("validation_accuracy")
        self.reporter.progress(
            done / self.training.epochs,
            f"epoch {counters.epoch + 1}/{self.training.epochs}, step {counters.step_in_epoch}/"
            f"{self.batches.steps_per_epoch}, loss {'-' if loss is None else f'{loss:.3f}'}"
            + (f", validation accuracy {validation:.1%}" if validation is not None else "")
            + f", {speed:,.0f} images/s, {_duration(left)} left",
            epoch=counters.epoch + 1,
            step=counters.step,
            loss=loss,
            learning_rate=rate,
            images_per_second=speed,
            seconds_left=left,
        )

    # --- the end ------------------------------------------------------------------------------------------------

    def publish(self) -> dict[str, Any]:
        """Write the files of `train/`, the manifest last, then drop the checkpoints."""
        self.checkpoint(wait=True)
        folder = self.run.stage("train")
        snapshot = self.snapshot()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # From here until the new manifest is there the stage is not complete; its checkpoint stays until then.
            (folder / MANIFEST).unlink(missing_ok=True)
            weights.save(self.network.net, folder / "model.params")
            checkpoint.save(folder / "trainer.npz", Snapshot({}, snapshot.momenta, snapshot.meta))
            write_atomically(folder / "history.csv", csv_text(HISTORY_COLUMNS, self.counters.history))
            write_atomically(folder / "config.yaml", self._config_yaml())
            files = ("model.params", "history.csv", "config.yaml")
            value = manifest.write(folder, "train", files, self.chain.inputs("train"), self._details(folder))  # type: ignore[arg-type]
        except OSError as error:
            raise from_os_error(error, "publish the trained model") from error
        shutil.rmtree(self.run.checkpoints, ignore_errors=True)
        return value

    def _details(self, folder: Path) -> dict[str, Any]:
        counters = self.counters
        last = counters.history[-1]
        return {
            "run": self.run.run_id,
            "generation": self.chain.generation,
            "config": to_record(self.chain.config),
            "epochs": counters.epoch,
            "steps": counters.step,
            "seconds": round(counters.seconds, 3),
            "images_per_second": round(counters.images / counters.seconds, 1) if counters.seconds else None,
            "input_seconds": round(counters.input_seconds, 3),
            "resumed": counters.resumed,
            "exact": not counters.inexact,
            "inexact": counters.inexact,
            "segments": counters.segments,
            "last_epoch": last,
            "parameters": model.count_parameters(self.chain.config.architecture),
            "train_images": len(self.batches.indices),
            "validation_images": len(self.validation[1]),
            "normalisation": asdict(self.norm),
            "trainer": {"size": (folder / "trainer.npz").stat().st_size, "sha256": sha256_file(folder / "trainer.npz")},
            "dataset": {
                key: self.about_data[key] for key in ("name", "digest", "label", "sample", "official", "classes")
            },
            **self._conditions(),
        }

    def _config_yaml(self) -> str:
        head = (
            f"# The full configuration that {self.run.run_id} was trained with, every default spelled out.\n"
            "# Of addresses, user, password and query are left out.\n"
        )
        return head + yaml.safe_dump(_plain(to_record(self.chain.config)), sort_keys=False)

    # --- helpers ------------------------------------------------------------------------------------------------

    def _newest_checkpoint(self) -> tuple[Snapshot, str] | None:
        """The newest checkpoint that is whole and belongs to this training, and how to call going on from it."""
        finished = self._result_epochs()
        for path in checkpoint.paths(self.run.checkpoints):
            try:
                snapshot = checkpoint.load(path)
                why_not = self._why_not(snapshot)
                if not why_not:
                    self._check_fit(snapshot, path)
            except Damaged as error:
                self.reporter.note(f"{error}; falling back to the one before")
                if self.share.leads:
                    checkpoint.set_damaged_aside(path)
                continue
            if why_not:
                self._set_aside(path, why_not)
            elif snapshot.meta["counters"]["epoch"] < finished:
                self.reporter.note(f"removed {path.name}: the finished training of {finished} epochs is newer")
                path.unlink()
            else:
                return snapshot, f"resumed from {path.name}"
        return None

    def _result_epochs(self) -> int:
        """Epochs of the published result, 0 when there is none that is whole."""
        folder = self.run.stage("train")
        finished = manifest.read(folder)
        if finished is None or not checkpoint.paths(self.run.checkpoints):
            return 0
        whole = not manifest.problems(folder, "train", self.chain.inputs("train"))
        return trained_epochs(finished) if whole and not manifest.damage(folder, finished) else 0

    def _check_fit(self, snapshot: Snapshot, path: Path) -> None:
        """Raise `Damaged` for a checkpoint of this training that is not what this training writes."""
        why = self.network.misfit(snapshot.parameters, snapshot.momenta)
        if not why and not snapshot.finite():
            why = "its numbers are not all finite"
        if not why and snapshot.meta["counters"]["step_in_epoch"] > self.batches.steps_per_epoch:
            why = f"it is past the {self.batches.steps_per_epoch} steps of an epoch"
        if why:
            raise Damaged(f"{path}: damaged checkpoint ({why})")

    def _why_not(self, snapshot: Snapshot) -> str:
        saved = dict(snapshot.meta["identity"])
        saved["training"] = _deciding(recorded_training(saved["training"]))
        changed = differences(saved, self.identity())
        if changed:
            return "the configuration changed since: " + "; ".join(changed[:4])
        if snapshot.meta["counters"]["epoch"] >= self.training.epochs and (
            snapshot.meta["counters"]["epoch"] > self.training.epochs or snapshot.meta["counters"]["step_in_epoch"]
        ):
            return f"it is past the {self.training.epochs} epochs that are wanted now"
        return ""

    def _set_aside(self, path: Path, why: str) -> None:
        target = self.run.workspace.trash / f"{self.run.run_id}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        move(path, target)
        self.reporter.note(f"not going on from {path.name}: {why}; moved it to {target}")

    def _finished_run(self) -> tuple[Snapshot, str] | None:
        """The state of the finished run, when the wanted epochs are more than it has."""
        folder = self.run.stage("train")
        finished = manifest.read(folder)
        # A damaged or foreign result is not gone on from: only one that lacks nothing but epochs.
        if finished is None or manifest.problems(folder, "train", self.chain.inputs("train")):
            return None
        epochs = trained_epochs(finished)
        if epochs >= self.training.epochs:
            return None
        weights.load_trusted(
            self.network.net,
            folder / "model.params",
            finished["files"]["model.params"]["sha256"],
            self.devices.contexts,
        )
        parameters = self.network.state()[0]
        how = f"continued from {epochs} epochs of {folder.name}/model.params"
        try:
            recorded = manifest.digests(finished).get("trainer.npz", "none")
            if sha256_file(folder / "trainer.npz") != recorded:
                raise WorkspaceError(f"{folder / 'trainer.npz'}: its content is not what the manifest recorded")
            snapshot = checkpoint.load(folder / "trainer.npz")
            snapshot.parameters.update(parameters)
            self._check_fit(snapshot, folder / "trainer.npz")
        except (WorkspaceError, OSError) as error:
            self.reporter.note(f"{error}; going on from model.params with momentum zero")
            snapshot = Snapshot(parameters, {}, self._meta_without_trainer(finished))
        snapshot.meta["counters"]["inexact"] += self._changed_since(finished)
        return snapshot, how

    def _meta_without_trainer(self, finished: dict[str, Any]) -> dict[str, Any]:
        """What `trainer.npz` says, from the other files of the finished run."""
        folder, details = self.run.stage("train"), finished["details"]
        if damaged := manifest.damage(folder, finished):
            raise WorkspaceError(
                f"{damaged[0]}; restore it from a backup, or set the stage aside "
                "(luigi --module tasks SetAside --stage train) and train again"
            )
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
            inexact=[*details.get("inexact", []), "the momentum was lost when the run was continued"],
        )
        return {**details, "counters": asdict(counters), "step": counters.step}

    def _changed_since(self, finished: dict[str, Any]) -> list[str]:
        """What of the configuration changed since the run was finished, if it made another result of these epochs."""
        changed = [line for line in config_changes(finished, self.chain.config) if line.startswith("training.")]
        recorded = recorded_training(finished["details"]["config"]["training"])
        with contextlib.suppress(msgspec.ValidationError):
            then = msgspec.convert({**recorded, "epochs": self.training.epochs}, Training)
            per_epoch = self.batches.steps_per_epoch
            same = (
                learning_rate(then, step, per_epoch) == learning_rate(self.training, step, per_epoch)
                for step in range(finished["details"]["steps"])
            )
            if all(same):  # a milestone that is still to come, say
                changed = [line for line in changed if not line.startswith("training.schedule.")]
        return changed

    def _note_inexactness(self, meta: dict[str, Any]) -> None:
        then, now = (
            {"workers": 1, **value, "libraries": _libraries(value["versions"])} for value in (meta, self._conditions())
        )
        for key, name in (
            ("threads", "threads"),
            ("workers", "workers"),
            ("device", "device"),
            ("precision", "precision"),
            ("cpu", "processor"),
            ("libraries", "libraries"),
        ):
            if then.get(key) != now[key]:
                reason = f"{name} {then.get(key)} -> {now[key]} when resumed at step {self.counters.step}"
                self.counters.inexact.append(reason)
        last = self.counters.segments[-1] if self.counters.segments else None
        if last and last["epochs"] != self.training.epochs and depends_on_total(self.training):
            self.counters.inexact.append(
                f"training.epochs {last['epochs']} -> {self.training.epochs} at step {self.counters.step}: the "
                f"{self.training.schedule.kind} schedule stretches over the total, so the steps before followed "
                "the shorter curve"
            )

    def _conditions(self) -> dict[str, Any]:
        return {
            "device": self.devices.name,
            "precision": self.precision,
            "threads": int(os.environ["OMP_NUM_THREADS"]),
            "workers": self.share.workers,
            "cpu": runtime.cpu_name(),
            "host": platform.node(),
            "versions": runtime.versions(),
        }

    def _whiten(self) -> None:
        images = self.batches.images[self.batches.indices[: whitening.IMAGES]]
        channels = self.chain.config.architecture.conv_arch[0][1]
        self.network.replace_first_filters(whitening.filters(images, self.norm, channels))

    def _normalisation(self, images: np.ndarray) -> batches.Normalisation:
        return batches.measure_normalisation(images) if self.training.normalize else batches.Normalisation()

    def _learning_rate(self) -> float:
        return learning_rate(self.training, self.counters.step, self.batches.steps_per_epoch)

    def _collect(self) -> None:
        """Read what was summed up on the device. Waits for the computations in flight."""
        if self.counters.step_in_epoch:
            self.counters.sums = self.network.sums()

    def _check_finite(self) -> None:
        if not all(math.isfinite(loss) for loss, _ in self.counters.sums):
            self._diverged()

    def _diverged(self) -> None:
        counters = self.counters
        self.writer.finish()
        kept = checkpoint.paths(self.run.checkpoints)
        good = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint was written before"
        raise TrainingDiverged(
            f"the loss is no longer a finite number at epoch {counters.epoch + 1}, step {counters.step} (learning rate "
            f"{self._learning_rate():.4g}); {good}; lower training.learning_rate or lengthen schedule.warmup_epochs"
        )


def _deciding(training: dict[str, Any]) -> dict[str, Any]:
    """The keys of `training` that a checkpoint must have in common with the training that goes on from it."""
    return {key: value for key, value in training.items() if key not in ("epochs", "precision", *OPERATIONAL_KEYS)}


def _libraries(versions: dict[str, str]) -> str:
    """The versions of what computes the result, for a comparison."""
    return ", ".join(f"{name} {versions[name]}" for name in sorted(versions) if name.startswith(("mxnet", "numpy")))


def _readable(row: dict[str, Any], epochs: int) -> str:
    validation = ""
    if row["validation_loss"] is not None:
        validation = f"validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}, "
    return (
        f"epoch {row['epoch']}/{epochs}: train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}, "
        f"{validation}learning rate {row['learning_rate']:.3g}, {row['images_per_second']:,.0f} images/s, "
        f"{row['seconds']:.1f} s"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
