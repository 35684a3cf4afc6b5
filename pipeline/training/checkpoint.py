"""Checkpoints: everything that a training needs to resume as if it had never stopped.

Each is an `.npz` in the run's `work/…/checkpoints` (plain arrays, no pickle, a ZIP CRC-32 per array), written to a
temporary file, fsynced and renamed. The last two are kept, so that a damaged one costs a minute and not the run; it is
renamed to `damaged-…` and no longer counts.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
from msgspec import Struct

from pipeline.arrays import read_npz
from pipeline.errors import WorkspaceError, from_os_error
from pipeline.files import atomic_writer, remove_debris, sha256_file

SCHEMA = 1
KEEP = 2

#: Errors that do not mean a damaged file: training must not start over because of them.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Damaged(WorkspaceError):
    """A checkpoint that cannot be read back as it was written."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: damaged checkpoint ({why})")


class Row(TypedDict):
    """One epoch of the history: the columns of `history.csv`."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float


class Segment(TypedDict):
    """Where one process started to train. Also holds `Session.conditions`."""

    how: str
    step: int
    epoch: int
    epochs: int
    schedule: str
    started: str


class Counters(Struct, forbid_unknown_fields=True):
    """All counters that must survive an interruption. Saved in each checkpoint's `meta`."""

    step: _Count = 0
    epoch: _Count = 0
    step_in_epoch: _Count = 0
    #: For each device, loss sum and number of correct predictions of the current epoch so far.
    sums: list[Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]] = []
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    images: _Count = 0
    #: The part of `seconds` that steps spent waiting for their batch.
    input_seconds: float = 0.0
    resumed: _Count = 0
    history: list[Row] = []
    segments: list[Segment] = []
    #: Why the weights may not be bit-identical to those of an uninterrupted run; empty if they are.
    inexact: list[str] = []

    def end_epoch(self, row: Row) -> None:
        """Count a finished epoch and keep its row of the history."""
        self.history.append(row)
        self.seconds += self.epoch_seconds
        self.epoch += 1
        self.step_in_epoch, self.epoch_seconds, self.sums = 0, 0.0, []


class _Identity(Struct):
    training: dict[str, Any]


class _Meta(Struct):
    """Schema of `meta`. A checkpoint that does not match counts as damaged."""

    step: _Count
    identity: _Identity
    counters: Counters
    versions: dict[str, str]


@dataclass
class Snapshot:
    """The state of a training at a step boundary. Arrays are float32, by structural name."""

    #: A suffix `@1`, `@2` … marks the running statistics of the second and further devices.
    parameters: dict[str, np.ndarray]
    #: Momentum buffers and loss scale.
    optimizer_state: dict[str, np.ndarray]
    #: Plain JSON.
    meta: dict[str, Any]

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite; either would propagate to the sum."""
        arrays = (*self.parameters.values(), *self.optimizer_state.values())
        return all(np.isfinite(array.sum(dtype=np.float64)) for array in arrays)


def save(path: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint atomically and durably. Raises `WorkspaceError` if the disk is full or read-only."""
    arrays = {
        "meta": np.frombuffer(json.dumps({**snapshot.meta, "schema": SCHEMA}).encode(), np.uint8),
        **{f"parameter:{name}": value for name, value in snapshot.parameters.items()},
        **{f"momentum:{name}": value for name, value in snapshot.optimizer_state.items()},
    }
    try:
        remove_debris(path.parent, "step-*")
        with atomic_writer(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, f"write {path.name}") from error


def load(path: Path, sha256: str | None = None) -> Snapshot:
    """Read and validate a checkpoint, and compare it with its recorded `sha256` if given.

    Raises `Damaged`, or `WorkspaceError` if it has another schema or cannot be read at the moment.
    """
    try:
        if sha256 is not None and sha256_file(path) != sha256:
            raise Damaged(path, "its SHA-256 does not match its manifest")
        arrays = read_npz(path)
        meta = json.loads(arrays.pop("meta").tobytes())
        schema = msgspec.convert(meta["schema"], int)
    except (Damaged, MemoryError):
        raise
    except Exception as error:  # the file may contain anything
        if isinstance(error, OSError) and error.errno in _NOT_DAMAGE:
            raise from_os_error(error, "read it") from error
        raise Damaged(path, f"{type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise WorkspaceError(
            f"{path}: checkpoint of schema {schema}, this version reads {SCHEMA}: resume with the version that "
            "wrote it, or move the file away to train again from the start"
        )
    groups: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "momentum": {}}
    for name, value in arrays.items():
        group, _, structural_name = name.partition(":")
        if group not in groups or value.dtype.kind != "f":
            raise Damaged(path, f"found array {name} of type {value.dtype}")
        groups[group][structural_name] = value
    try:
        counters = msgspec.convert(meta, _Meta).counters
    except msgspec.ValidationError as error:
        raise Damaged(path, error) from None
    if [row["epoch"] for row in counters.history] != list(range(1, counters.epoch + 1)):
        raise Damaged(path, f"its history is not that of epochs 1 to {counters.epoch}")
    if not all(math.isfinite(value) for values in counters.sums for value in values):
        raise Damaged(path, "its sums are not finite")
    return Snapshot(groups["parameter"], groups["momentum"], meta)


def paths(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest (most steps) first."""
    return sorted(folder.glob("step-*.npz"), reverse=True)


def quarantine(path: Path) -> None:
    """Rename a damaged checkpoint so that `paths` skips it; it stays in the folder until the training is finished."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_name(f"damaged-{path.name}"))


class Writer:
    """Writes a run's checkpoints in a thread, one at a time, and keeps the last two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    @property
    def busy(self) -> bool:
        return self._pending is not None and not self._pending.done()

    def check(self) -> None:
        """Raise the error of the last write if it has failed. Does not wait."""
        if not self.busy:
            self.finish()

    def write(self, snapshot: Snapshot, wait: bool = False) -> Path:
        """Write `snapshot` to `step-<n>.npz`. Raises the error of the previous write if it failed."""
        self.finish()
        path = self.folder / f"step-{snapshot.meta['step']:09d}.npz"
        self._pending = self._executor.submit(self._write, path, snapshot)
        if wait:
            self.finish()
        return path

    def finish(self) -> None:
        """Wait for the write in progress, and raise its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, path: Path, snapshot: Snapshot) -> None:
        save(path, snapshot)
        for old in paths(self.folder)[KEEP:]:
            with contextlib.suppress(OSError):
                old.unlink()
