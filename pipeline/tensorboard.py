"""TensorBoard: the learning curves of a training as an event file. Off unless `training.tensorboard` is set.

Reads the history of a running training, leaves `train/tensorboard/` of the run. Needs the package tensorboardX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, from_os_error

#: Key of the history -> name of the curve; curves that share the part before the slash are shown together.
CURVES = {
    "train_loss": "loss/training",
    "validation_loss": "loss/validation",
    "train_accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}

#: Seconds between two writes of a running training; each one writes the whole history.
WRITE_SECONDS = 5.0

_EVENT_FILES = "events.out.tfevents.*"


def check() -> Any:
    """The writer's class; raises `PipelineError` when tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise PipelineError(
            f"training.tensorboard: needs tensorboardX, which cannot be imported ({error}): pip install tensorboardX, "
            "or leave the key out"
        ) from error
    return SummaryWriter


def write(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the history of a training (one mapping an epoch, the columns of `history.csv`) into `folder`.

    May be called again as the history grows: an event file that an earlier call left is replaced, so that an epoch
    never appears twice. Missing values are left out. Raises `PipelineError` when tensorboardX is not installed.
    """
    summary_writer = check()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = list(folder.glob(_EVENT_FILES))
        # The suffix keeps two calls within a second apart.
        with summary_writer(str(folder), filename_suffix=f".{len(history)}") as writer:
            for row in history:
                for key, name in CURVES.items():
                    if row.get(key) is not None:
                        writer.add_scalar(name, row[key], row["epoch"])
        written = max(folder.glob(_EVENT_FILES), key=lambda path: path.stat().st_mtime_ns)
        for path in earlier:
            if path != written:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise from_os_error(error, "write the TensorBoard files") from error
