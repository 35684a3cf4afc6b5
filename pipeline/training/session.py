"""The session of a training process: its devices, data, network and counters."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import dataset, runtime
from pipeline.config import Training
from pipeline.dataset import loader
from pipeline.dataset.normalisation import Normalisation
from pipeline.errors import ConfigError
from pipeline.process.reporter import Reporter
from pipeline.training import precision
from pipeline.training.checkpoint import Counters
from pipeline.training.gradient_sync import ProcessGroup, Worker
from pipeline.training.network import Network
from pipeline.training.schedule import learning_rate
from pipeline.workspace import Run
from pipeline.workspace.freshness import Chain


@dataclass
class Session:
    """State of one training process. A distributed training has one per worker."""

    chain: Chain
    run: Run
    reporter: Reporter
    devices: runtime.Devices
    group: ProcessGroup
    precision: str
    precision_reason: str
    #: `name`, `digest`, `label`, `sample`, `official` and `classes` of the data set.
    data_details: dict[str, Any]
    normalisation: Normalisation
    batches: loader.TrainingLoader
    #: (n, 3, 32, 32) uint8 images and (n,) labels.
    validation: tuple[np.ndarray, np.ndarray]
    network: Network
    counters: Counters = field(default_factory=Counters)

    @property
    def training(self) -> Training:
        return self.chain.config.training

    @property
    def worker(self) -> Worker:
        return self.group.worker

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.training, self.counters.step, self.batches.steps_per_epoch)

    def conditions(self) -> dict[str, Any]:
        """The hardware and software in use. The bits of the result depend on all of it but `host`."""
        return {
            "device": self.devices.name,
            "precision": self.precision,
            "amx": self.precision == "bfloat16" and runtime.amx_in_use(),
            "threads": int(os.environ["OMP_NUM_THREADS"]),
            "workers": self.worker.world_size,
            "cpu": runtime.cpu_name(),
            "host": platform.node(),
            "versions": runtime.versions(),
            "last_batch": self.batches.size(self.batches.steps_per_epoch - 1),
        }


def open_session(chain: Chain, run: Run, reporter: Reporter, worker: Worker) -> Session:
    """Load the data set and build the network.

    Raises `ConfigError` if the network has too few outputs, or if there are more devices than images in a batch: batch
    norm's statistics on a device without images would stay as they were initialised, and spoil the average.
    """
    training, architecture = chain.config.training, chain.config.architecture
    devices = runtime.devices(chain.config.device)
    group = ProcessGroup(runtime.mxnet(), devices, worker)
    with group.leader_first():
        chosen, reason = precision.choose(architecture, training, devices, run)
    folder = run.workspace.dataset(run.dataset_id)
    data = dataset.load(folder)
    if len(data.classes) > architecture.outputs:
        raise ConfigError(
            f"architecture.classes: found {architecture.classes}, but {run.dataset_id} has {len(data.classes)} classes"
        )
    held_out = min(training.validation_images, len(data.train_labels) // 2)
    if held_out < training.validation_images:
        images = f"{held_out:,} of the {len(data.train_labels):,} training images"
        reporter.note(f"training.validation_images: holding out only {images}: at most half may be held out")
    train_indices, validation_indices = loader.split(data.train_labels, held_out, training.seed)
    batch_size = int(loader.batch_bounds(len(train_indices), training.batch_size)[1])
    if architecture.batch_norm and batch_size < (parts := len(devices.contexts) * worker.world_size):
        raise ConfigError(
            f"training.batch_size: batches of {batch_size} images for {parts} devices, but with batch_norm each device "
            "needs an image: use larger batches or fewer devices"
        )
    # Verify the images while measuring them: hashing releases the GIL.
    with ThreadPoolExecutor(1) as executor:
        verification = executor.submit(dataset.verify, folder, data.manifest)
        norm = Normalisation.measure(data.train_images) if training.normalize else Normalisation()
        verification.result()
    network = Network(architecture, training, devices, chosen, group)
    # Not earlier: the process that measured the precision used all cores.
    runtime.adapt_to_load(reporter.write if worker.is_leader else lambda line: None)
    # Several sources may have the same images; `label` and `official` describe the configured one.
    source = chain.source_record() or {}
    details = {**data.manifest["details"], **{k: source[k] for k in ("label", "official") if k in source}}
    return Session(
        chain=chain,
        run=run,
        reporter=reporter,
        devices=devices,
        group=group,
        precision=chosen,
        precision_reason=reason,
        data_details={key: details[key] for key in ("name", "digest", "label", "sample", "official", "classes")},
        normalisation=norm,
        batches=loader.TrainingLoader(
            data.train_images, data.train_labels, train_indices, training, norm, (worker.rank, worker.world_size)
        ),
        validation=(data.train_images[validation_indices], data.train_labels[validation_indices]),
        network=network,
    )
