"""TensorBoard: the learning curves of a training as an event file. Off unless `training.tensorboard` is set.

Reads the history of a running training, leaves `train/tensorboard/` of the run. Needs the package tensorboardX.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, from_os_error
from pipeline.files import open_regular

#: Key of the history -> name of the curve; curves that share the part before the slash are shown together.
CURVES = {
    "train_loss": "loss/training",
    "validation_loss": "loss/validation",
    "train_accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}

#: Seconds between two writes of a running training.
WRITE_SECONDS = 5.0

#: Of a file that is begun. What the name holds beside `tfevents` is nobody's concern.
_NAME = "events.out.tfevents.training"


def check() -> None:
    """Raise `PipelineError` when tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise PipelineError(
            f"training.tensorboard: needs tensorboardX, which cannot be imported ({error}): pip install tensorboardX, "
            "or leave the key out"
        ) from error


class Curves:
    """The event file of one training in `folder`. Only ever appended to, as readers keep it open."""

    def __init__(self, folder: Path) -> None:
        check()
        self.path = max(folder.glob("events.out.tfevents.*"), default=folder / _NAME)
        self._written: int | None = None

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Bring the file up to date with a history (one mapping an epoch, the columns of `history.csv`).

        Missing values are left out. A process's first call writes the whole history, after an event that makes
        readers forget what they have: a resumed training may repeat epochs.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(open_regular(self.path, os.O_RDWR | os.O_CREAT), "rb+") as file:
                end = _end_of_whole_records(file.read())
                file.truncate(end)
                file.seek(end)
                if not end:
                    file.write(_record({"file_version": "brain.Event:2"}))
                if self._written is None:
                    file.write(_record({"session_log": {"status": "START"}}))
                for row in history[self._written or 0 :]:
                    file.writelines(_record(event) for event in _events(row))
            self._written = len(history)
        except OSError as error:
            raise from_os_error(error, "write the TensorBoard files") from error


def _events(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, name in CURVES.items():
        if row.get(key) is not None:
            yield {"step": row["epoch"], "summary": {"value": [{"tag": name, "simple_value": row[key]}]}}


def _record(event: dict[str, Any]) -> bytes:
    """An event as it is in the file: its length, the checksum of that, the event, its checksum."""
    from google.protobuf.json_format import ParseDict
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content = ParseDict({**event, "wall_time": time.time()}, Event()).SerializeToString()
    length = struct.pack("<Q", len(content))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checksums) + content + next(checksums)


def _end_of_whole_records(content: bytes) -> int:
    """Where the last record ends that a killed writer has not left half: readers come no further than that one."""
    end = 0
    while end + 16 <= len(content):
        (length,) = struct.unpack_from("<Q", content, end)
        if end + 16 + length > len(content):
            break
        end += 16 + length
    return end
