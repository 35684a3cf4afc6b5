"""Checkpoints: everything that a training needs to go on as if it had never stopped.

One `.npz` a checkpoint in the run's `work/…/checkpoints`: plain arrays, no pickle; ZIP's CRC-32 guards every array.
Written beside its place, fsynced and renamed. The last two are kept, so that a damaged one costs a minute, not a run.
A damaged one is renamed to `damaged-…` when it is met, so that it does not count as one of the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import WorkspaceError, from_os_error
from pipeline.files import atomic_writer, remove_debris

SCHEMA = 1
KEEP = 2


class Damaged(WorkspaceError):
    """A checkpoint that cannot be read back as it was written."""


@dataclass
class Snapshot:
    """The state of a training at a step boundary.

    `parameters` and `momenta` map structural names to float32 arrays; names with `@1`, `@2` … are the second and
    further devices' own running statistics. `meta` is JSON: counters, history, identity.
    """

    parameters: dict[str, np.ndarray]
    momenta: dict[str, np.ndarray]
    meta: dict[str, Any] = field(default_factory=dict)

    def finite(self) -> bool:
        """True when no number is NaN or infinite: either would show in the sum."""
        arrays = (*self.parameters.values(), *self.momenta.values())
        return all(np.isfinite(array.sum(dtype=np.float64)) for array in arrays)


def save(path: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint atomically and durably; raises `WorkspaceError` when the disk is full or read-only."""
    arrays = {
        "meta": np.frombuffer(json.dumps({**snapshot.meta, "schema": SCHEMA}).encode(), np.uint8),
        **{f"parameter:{name}": value for name, value in snapshot.parameters.items()},
        **{f"momentum:{name}": value for name, value in snapshot.momenta.items()},
    }
    try:
        remove_debris(path.parent, "step-*")
        with atomic_writer(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, f"write {path.name}") from error


def load(path: Path) -> Snapshot:
    """Read a checkpoint and check it; raises `Damaged`, or `WorkspaceError` when it is of another schema."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        schema = meta["schema"]
    except Exception as error:  # a flipped bit can surface as almost anything in zipfile and numpy
        raise Damaged(f"{path}: damaged checkpoint ({type(error).__name__}: {error})") from error
    if schema != SCHEMA:
        raise WorkspaceError(
            f"{path}: checkpoint of schema {schema}, this version reads {SCHEMA}: go on with the version that wrote "
            "it, or move the file away to train again from the start"
        )
    groups: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "momentum": {}}
    for name, value in arrays.items():
        group, _, structural_name = name.partition(":")
        groups[group][structural_name] = value
    return Snapshot(groups["parameter"], groups["momentum"], meta)


def paths(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest (most steps) first."""
    return sorted(folder.glob("step-*.npz"), reverse=True)


def set_damaged_aside(path: Path) -> None:
    """Take a damaged checkpoint out of the row; it stays in the folder until the training is finished."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_name(f"damaged-{path.name}"))


class Writer:
    """Writes checkpoints of one run in a thread, one at a time, and keeps the last two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what made the last write fail, if it has failed; does not wait."""
        if not self.busy:
            self.finish()

    def write(self, snapshot: Snapshot, wait: bool = False) -> Path:
        """Write `snapshot` as `step-<n>.npz`. Raises the error of the previous write if that failed."""
        self.finish()
        path = self.folder / f"step-{snapshot.meta['step']:09d}.npz"
        self._thread = threading.Thread(target=self._write, args=(path, snapshot), name="checkpoint")
        self._thread.start()
        if wait:
            self.finish()
        return path

    def finish(self) -> None:
        """Wait for the write in progress; raises what made it fail."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, path: Path, snapshot: Snapshot) -> None:
        try:
            save(path, snapshot)
            for old in paths(self.folder)[KEEP:]:
                with contextlib.suppress(OSError):
                    old.unlink()
        except Exception as error:  # raised in the training's thread by `finish`
            self._error = error
