"""Learning curves for TensorBoard in `train/tensorboard/`, if `training.tensorboard` is set. Needs tensorboardX."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, from_os_error

#: Key of the history -> name of the curve. TensorBoard groups curves by the part before the slash.
CURVES = {
    "train_loss": "loss/training",
    "validation_loss": "loss/validation",
    "train_accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}


class Curves:
    """One process's event file in `folder`. Raises `PipelineError` if tensorboardX is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise PipelineError(
                f"training.tensorboard: needs tensorboardX, which cannot be imported ({error}): "
                "pip install tensorboardX, or leave the key out"
            ) from error
        self._folder = folder
        self._file: Any = None
        self._written = 0

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Append the new rows of a history (one mapping per epoch, with the columns of `history.csv`).

        Skips missing values. The first call writes the whole history, after an event that makes readers discard what
        they have, because a resumed training may repeat epochs.
        """
        from tensorboardX.event_file_writer import EventsWriter

        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = EventsWriter(str(self._folder / "events"), f".{os.getpid()}")
                self._send(session_log={"status": "START"})
            for row in history[self._written :]:
                known = {name: row[key] for key, name in CURVES.items() if row.get(key) is not None}
                values = [{"tag": name, "simple_value": value} for name, value in known.items()]
                self._send(step=row["epoch"], summary={"value": values})
            self._file.flush()
            self._written = len(history)
        except OSError as error:
            raise from_os_error(error, "write the TensorBoard files") from error

    def _send(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), **event))
