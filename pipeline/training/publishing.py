"""Publish the result of a training: the files of `train/` and their manifest."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pipeline import model
from pipeline.config import to_record
from pipeline.errors import from_os_error
from pipeline.files import sha256_file, write_atomically
from pipeline.model import weights
from pipeline.tables import csv_text
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Row, Snapshot
from pipeline.training.session import Session
from pipeline.workspace import MANIFEST, manifest

#: `config.loading` recognises a recorded configuration by the start of its first line.
_CONFIG_HEAD = """\
# The full configuration that {run} was trained with, including all defaults.
# User, password and query are removed from addresses.
"""


def publish(session: Session, snapshot: Snapshot) -> dict[str, Any]:
    """Write the files of `train/`, the manifest last, then delete the checkpoints. Returns the manifest."""
    run, chain = session.run, session.chain
    folder = run.stage("train")
    configuration = yaml.safe_dump(to_record(chain.config), sort_keys=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The stage is incomplete until the new manifest exists; its checkpoint stays until then.
        (folder / MANIFEST).unlink(missing_ok=True)
        weights.save(session.network.net, folder / "model.params")
        # Each of several devices has its own running statistics; model.params has only their mean.
        running_statistics = {
            name: value
            for name, value in snapshot.parameters.items()
            if f"{name.partition('@')[0]}@1" in snapshot.parameters
        }
        trainer_state = Snapshot(running_statistics, snapshot.optimizer_state, snapshot.meta)
        checkpoint.save(folder / "trainer.npz", trainer_state)
        write_atomically(folder / "history.csv", csv_text(tuple(Row.__annotations__), session.counters.history))
        write_atomically(folder / "config.yaml", _CONFIG_HEAD.format(run=run.run_id) + configuration)
        files = ("model.params", "history.csv", "config.yaml")
        value = manifest.write(folder, "train", files, chain.inputs("train"), _details(session, folder))  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "publish the trained model") from error
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: it may contain precision.json
        run.work.rmdir()
    return value


def _details(session: Session, folder: Path) -> dict[str, Any]:
    counters = session.counters
    return {
        "run": session.run.run_id,
        "generation": session.chain.generation,
        "config": to_record(session.chain.config),
        "epochs": counters.epoch,
        "steps": counters.step,
        "seconds": round(counters.seconds, 3),
        "images_per_second": round(counters.images / counters.seconds, 1) if counters.seconds else None,
        "input_seconds": round(counters.input_seconds, 3),
        "resumed": counters.resumed,
        "exact": not counters.inexact,
        "inexact": counters.inexact,
        "segments": counters.segments,
        "last_epoch": counters.history[-1],
        "parameters": model.count_parameters(session.chain.config.architecture),
        "train_images": len(session.batches.indices),
        "validation_images": len(session.validation[1]),
        "normalisation": asdict(session.normalisation),
        "trainer": {"size": (folder / "trainer.npz").stat().st_size, "sha256": sha256_file(folder / "trainer.npz")},
        "dataset": session.data_details,
        **session.conditions(),
    }
