"""Run an exported `.onnx` file with onnxruntime. Needs neither MXNet nor a run."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message

from pipeline.errors import PipelineError
from pipeline.evaluation import tta
from pipeline.process.cores import usable_cores
from pipeline.text import cause

BATCH_SIZE = 250

#: Seconds that a batch may take. Ours take a few, but a file of 2 kB can demand hours of large matrix products.
BATCH_SECONDS = 1800.0

#: Largest side of a model's input images, in pixels.
MAX_SIDE = 1024


@dataclass(frozen=True)
class Model:
    """An opened `.onnx` file."""

    path: Path
    session: Any
    classes: list[str]
    size: tuple[int, int]  # of images: (height, width) in pixels
    metadata: dict[str, str]
    views: int  # averaged per prediction, see `pipeline.evaluation.tta`
    padding: str  # of shifted views: `zero` or `reflect`

    def logits(self, images: np.ndarray, progress: Callable[[int], None] = lambda done: None) -> np.ndarray:
        """Return (n, classes) float32 logits of (n, 3, H, W) uint8 RGB images, averaged over the model's views.

        Calls `progress` with the number of images done. Raises `PipelineError` when the model cannot run on them.
        """
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        name = self.session.get_inputs()[0].name
        parts = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = np.asarray(images[start : start + BATCH_SIZE]).astype(np.float32) / np.float32(255)
            outputs = [self._run(name, view) for view in tta.views(batch, self.views, self.padding)]
            parts.append(tta.average(outputs))
            progress(start + len(batch))
        return np.concatenate(parts)

    def _run(self, name: str, batch: np.ndarray) -> np.ndarray:
        options = onnxruntime.RunOptions()
        limit = threading.Timer(BATCH_SECONDS, setattr, (options, "terminate", True))
        limit.daemon = True
        limit.start()
        try:
            logits = self.session.run(["logits"], {name: batch}, options)[0]
        except Exception as error:  # onnxruntime's errors share no base class
            reason = f"it takes more than {BATCH_SECONDS:g} s" if options.terminate else cause(error)
            raise PipelineError(f"{self.path}: cannot be run on these images ({reason})") from error
        finally:
            limit.cancel()
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
            found = getattr(logits, "dtype", type(logits).__name__)
            raise PipelineError(f"{self.path}: returns logits of type {found}, expected float32; export it again")
        if logits.shape != (len(batch), len(self.classes)):
            raise PipelineError(
                f"{self.path}: returns logits of shape {logits.shape} for {len(batch)} images and "
                f"{len(self.classes)} class names: the file was modified after export; export it again"
            )
        if not np.isfinite(logits).all():
            raise PipelineError(
                f"{self.path}: returns logits that are not finite (NaN or infinity); train and export it again"
            )
        return logits


def open_model(path: Path) -> Model:
    """Open an `.onnx` file written by the export stage. Raises `PipelineError` if it is missing, foreign or damaged."""
    session = _session(path)
    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
        classes = _classes(metadata["classes"])
        _, channels, height, width = inputs[0].shape
        if len(inputs) != 1 or channels != 3 or "logits" not in outputs:
            raise ValueError(f"inputs {[item.name for item in inputs]}, outputs {outputs}"[:300])
        if not 0 < min(int(height), int(width)) <= max(int(height), int(width)) <= MAX_SIDE:
            raise ValueError(f"images of {height} x {width} pixels")
        count = int(metadata.get("views", "1"))
        if count not in tta.WEIGHTS:
            raise ValueError(f"views {count}")
        padding = metadata.get("padding", "zero")
        if padding not in ("zero", "reflect"):
            raise ValueError(f"padding {padding!r}"[:300])
        return Model(path, session, classes, (int(height), int(width)), metadata, count, padding)
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise PipelineError(
            f"{path}: an ONNX model, but not exported by this pipeline ({error}); "
            "expected one NCHW input of RGB images, an output `logits` and the metadata `classes`"
        ) from None


def _classes(text: str) -> list[str]:
    """Parse the class names in the metadata. Raises `ValueError` for anything else, and for duplicates."""
    names = json.loads(text)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("classes: expected a list of names")
    if len(set(names)) < len(names):
        raise ValueError("classes: duplicate names")
    return names


def _check_safe(path: Path) -> None:
    """Raise `PipelineError` unless the file is a self-contained ONNX model that computes each node once.

    onnxruntime before 1.24 reads values from whatever path a model names, and a loop of a few bytes can run for ever.
    Our exports have neither.
    """
    try:
        if path.stat().st_size >= 1 << 31:
            raise PipelineError(f"{path}: is 2 GiB or larger, which no ONNX model can be; export it again")
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise PipelineError(f"{path}: cannot read it: {error.strerror}") from error
    except (ValueError, DecodeError):
        raise PipelineError(f"{path}: not a usable ONNX model (damaged, or another format); export it again") from None
    for part in _parts(model):
        kind = part.DESCRIPTOR.name
        if kind == "TensorProto" and (part.external_data or part.data_location):
            raise PipelineError(f"{path}: stores values in other files, which are not read; save the model as one file")
        if kind == "FunctionProto" or (kind == "AttributeProto" and (part.HasField("g") or part.graphs)):
            raise PipelineError(f"{path}: has loops, branches or functions, which are not run; export it again")


def _parts(message: Any) -> Iterator[Any]:
    """Yield all messages nested in a protocol buffer message, except those inside tensors."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield inner
                if inner.DESCRIPTOR.name != "TensorProto":
                    yield from _parts(inner)


def _session(path: Path) -> Any:
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; expected an .onnx file or a run's folder")
    _check_safe(path)
    options = onnxruntime.SessionOptions()
    # By default, onnxruntime pins one thread to each core of the machine, even in a container with fewer.
    options.intra_op_num_threads = usable_cores()
    options.inter_op_num_threads = 1
    # Log only fatal errors: the log bypasses Python, quotes the file unescaped, and repeats the exceptions.
    options.log_severity_level = 4
    try:
        # Before a retry of its own, it prints parts of the file to standard output, among the predictions.
        with contextlib.redirect_stdout(io.StringIO()):
            # Constant folding would compute here, where no time limit applies.
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
    except Exception as error:  # onnxruntime's errors share no base class
        raise PipelineError(f"{path}: not a usable ONNX model ({cause(error)}); export it again") from error
