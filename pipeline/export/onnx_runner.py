"""An exported `.onnx` file, run by onnxruntime. Needs neither MXNet nor a run."""

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

#: Seconds that a batch may take. Ours take a few, but a file of 2 kB can ask for hours of large products.
BATCH_SECONDS = 1800.0

#: Largest side of a model's input images, in pixels.
MOST_PIXELS = 1024


@dataclass(frozen=True)
class Model:
    """An opened `.onnx` file: image classes, image size (height, width) in pixels, and the metadata it carries.

    `views` is the number of views over which its predictions are averaged, `padding` what is beyond the border of those
    that are moved, see `pipeline.evaluation.tta`.
    """

    path: Path
    session: Any
    classes: list[str]
    size: tuple[int, int]
    metadata: dict[str, str]
    views: int
    padding: str

    def logits(self, images: np.ndarray, tell: Callable[[int], None] = lambda done: None) -> np.ndarray:
        """(n, classes) float32 logits of (n, 3, H, W) uint8 RGB images, averaged over the model's views.

        `tell` is called with the number of images done so far. Raises `PipelineError` when onnxruntime cannot run the
        model on them.
        """
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        name = self.session.get_inputs()[0].name
        parts = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = np.asarray(images[start : start + BATCH_SIZE]).astype(np.float32) / np.float32(255)
            outputs = [self._run(name, view) for view in tta.views(batch, self.views, self.padding)]
            parts.append(tta.average(outputs))
            tell(start + len(batch))
        return np.concatenate(parts)

    def _run(self, name: str, batch: np.ndarray) -> np.ndarray:
        options = onnxruntime.RunOptions()
        limit = threading.Timer(BATCH_SECONDS, setattr, (options, "terminate", True))
        limit.daemon = True
        limit.start()
        try:
            logits = self.session.run(["logits"], {name: batch}, options)[0]
        except Exception as error:  # onnxruntime's errors have no common base of their own
            why = f"it takes more than {BATCH_SECONDS:g} s" if options.terminate else cause(error)
            raise PipelineError(f"{self.path}: cannot be run on these images ({why})") from error
        finally:
            limit.cancel()
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
            found = getattr(logits, "dtype", type(logits).__name__)
            raise PipelineError(f"{self.path}: gives logits of type {found}, expected float32; export it again")
        if logits.shape != (len(batch), len(self.classes)):
            raise PipelineError(
                f"{self.path}: gives logits of shape {logits.shape} for {len(batch)} images and "
                f"{len(self.classes)} class names: the file was modified after export; export it again"
            )
        if not np.isfinite(logits).all():
            raise PipelineError(
                f"{self.path}: gives logits that are not finite (NaN or infinity); train and export it again"
            )
        return logits


def open_model(path: Path) -> Model:
    """Open an `.onnx` file written by the export stage, on the CPU cores that this process may use.

    Raises `PipelineError` when the file is missing or not an intact export.
    """
    session = _session(path)
    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
        classes = _classes(metadata["classes"])
        _, channels, height, width = inputs[0].shape
        if len(inputs) != 1 or channels != 3 or "logits" not in outputs:
            raise ValueError(f"inputs {[item.name for item in inputs]}, outputs {outputs}"[:300])
        if not 0 < min(int(height), int(width)) <= max(int(height), int(width)) <= MOST_PIXELS:
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
    """The class names in the metadata; raises `ValueError` for anything else, and for duplicates."""
    names = json.loads(text)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("classes: expected a list of names")
    if len(set(names)) < len(names):
        raise ValueError("classes: duplicate names")
    return names


def _check_whole(path: Path) -> None:
    """Raise `PipelineError` unless the file is an ONNX model that is complete in itself and computes each node once.

    onnxruntime before 1.24 reads values from whatever path a model names; a loop of a few bytes runs for ever. The
    export writes neither.
    """
    try:
        if path.stat().st_size >= 1 << 31:
            raise PipelineError(f"{path}: has 2 GiB or more, which no ONNX model can have; export it again")
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
    """All messages in a message of protocol buffers, however deep, but what is in tensors."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield inner
                if inner.DESCRIPTOR.name != "TensorProto":
                    yield from _parts(inner)


def _session(path: Path) -> Any:
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; expected an .onnx file or a run's folder")
    _check_whole(path)
    options = onnxruntime.SessionOptions()
    # By default onnxruntime pins one thread to each core of the machine, even in a container with fewer.
    options.intra_op_num_threads = usable_cores()
    options.inter_op_num_threads = 1
    # Only what its exceptions say, too: it prints past Python to the terminal, with whatever names are in the file.
    options.log_severity_level = 4
    try:
        # Before its own second try it prints parts of the file to standard output, among the predictions.
        with contextlib.redirect_stdout(io.StringIO()):
            # What is constant would be computed here, where nothing can stop it.
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise PipelineError(f"{path}: not a usable ONNX model ({cause(error)}); export it again") from error
