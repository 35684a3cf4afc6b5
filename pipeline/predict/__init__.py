"""Predict the classes of image files, with probabilities: `vgg-predict --model RUN image.png …`.

Reads an exported model (`.onnx`) and image files of any size; writes nothing. Needs neither MXNet nor the data set.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import streams
from pipeline.config import SAMPLE_LABEL
from pipeline.dataset import image_files
from pipeline.dataset.image_files import Picture, Unreadable
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluation import softmax
from pipeline.export import onnx_runner
from pipeline.files import expanded
from pipeline.predict import models
from pipeline.predict.models import DEFAULT_MODEL, default_model, local_copy, resolve_model
from pipeline.process.cores import usable_cores
from pipeline.storage import is_url
from pipeline.text import printable

#: Memory limit in bytes: MAX_MEMORY, 8 times the size of the model's file, and CORE_MEMORY for each core. A file that
#: declares more than it holds must end in an error, not exhaust the machine's memory.
MAX_MEMORY, CORE_MEMORY = 4 << 30, 64 << 20

#: Files whose pixels are in memory at the same time.
BLOCK = 1000


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    file: Path
    probabilities: dict[str, float]  # by class, in descending order
    resized_from: tuple[int, int] | None  # (width, height) in pixels, if the image was resized


def classify(model: onnx_runner.Model, files: Sequence[Path]) -> list[Prediction | Unreadable]:
    """Classify image files, in order. Returns `Unreadable` for a file that cannot be read."""
    images = image_files.read_all(files, model.size)
    pixels = [image.pixels for image in images if isinstance(image, Picture)]
    probabilities = iter(softmax(model.logits(np.array(pixels, np.uint8))))
    return [
        _prediction(file, image, next(probabilities), model.classes) if isinstance(image, Picture) else image
        for file, image in zip(files, images, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 (an unreadable file), 2 (a usage error), 130 (Ctrl-C)."""
    if arguments is None:  # run as a command, not called by another program
        streams.ignore_write_errors()
    options = _parser().parse_args(arguments)
    location = options.model or DEFAULT_MODEL
    try:
        if options.model == "":  # as from a variable that is not set
            raise ConfigError("--model: is empty; give a path, or leave it out for the default workspace")
        location = expanded(options.model, "--model") if options.model else default_model()
        path = resolve_model(local_copy(location) if is_url(location) else Path(location))
        if arguments is None:
            _limit_memory(path)
        model = onnx_runner.open_model(path)
        _introduce(path, model, location)
        # Damaged metadata is harmless, and our limit on pixels replaces the one that Pillow warns about.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _predict(model, *image_files.find(options.paths), options.json)
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        advice = "; classify fewer images at a time" if options.json else ""
        _say(f"{location}: needs more memory than this command may use{advice}")
        return 1
    except PipelineError as error:
        _say(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:  # without a file name: an unreachable store
        _say(f"{error.filename or location}: {error.strerror or error}")
        return 1


def _predict(
    model: onnx_runner.Model,
    files: Sequence[Path],
    skipped: Sequence[Path],
    unreadable: list[Unreadable],
    as_json: bool,
) -> int:
    """Classify files and print the predictions, a table block by block; returns the exit status."""
    columns = (["file", *map(str, files)], ["class", *model.classes])
    widths = [max(len(printable(text)) for text in column) for column in columns]
    widths[1] = min(widths[1], 64)  # the longest class name that a data set may have
    predictions: list[Prediction] = []
    resized: list[tuple[Path, tuple[int, int]]] = []
    head = True
    for start in range(0, len(files), BLOCK):
        results = classify(model, files[start : start + BLOCK])
        block = [result for result in results if isinstance(result, Prediction)]
        unreadable += [result for result in results if isinstance(result, Unreadable)]
        resized += [(result.file, result.resized_from) for result in block if result.resized_from]
        if as_json:
            predictions += block
        elif block:
            print(*_table(block, widths, head), sep="\n", flush=True)
            head = False
    if as_json:
        json.dump(_json(model, predictions, unreadable, skipped), sys.stdout, indent=2, allow_nan=False)
        print(flush=True)
    _warn_resized(resized, model.size)
    if skipped:
        _say(image_files.describe_skipped(skipped))
    for result in unreadable:
        _say(f"{result.file}: {result.why}")
    return 1 if unreadable else 0


def _limit_memory(model: Path) -> None:
    """Limit this process to the memory that it can need, stacks of threads included."""
    needed = MAX_MEMORY + 8 * min(model.stat().st_size, 1 << 31) + CORE_MEMORY * usable_cores()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = [limit for limit in (needed, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(allowed), hard))


def _prediction(file: Path, image: Picture, probabilities: np.ndarray, classes: list[str]) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")
    height, width = image.pixels.shape[1:]
    return Prediction(
        file,
        {classes[int(index)]: float(probabilities[index]) for index in order},
        None if image.size == (width, height) else image.size,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vgg-predict", description="Classify images with a trained network.")
    parser.add_argument("paths", nargs="+", type=_path, metavar="PATH", help="image files, or folders of images")
    parser.add_argument(
        "--model",
        help="a run's folder, an .onnx file, or a workspace (its current model, else its newest run); "
        "runs and workspaces may also be in a store, s3://… "
        f"(default: [vgg] workspace in luigi.cfg, else {DEFAULT_MODEL})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the probabilities of all classes")
    return parser


def _path(argument: str) -> Path:
    if not argument:  # such as an unset shell variable; Path("") is the working directory
        raise argparse.ArgumentTypeError("found '', expected an image file or a folder")
    return Path(argument)


def _table(predictions: Sequence[Prediction], widths: Sequence[int], head: bool) -> list[str]:
    rows = [("file", "class", "probability", "runner-up")] if head else []
    for prediction in predictions:
        (label, probability), *others = prediction.probabilities.items()
        runner_up = f"{others[0][0]} {others[0][1]:.1%}" if others else ""
        rows.append((printable(str(prediction.file)), printable(label), f"{probability:.1%}", printable(runner_up)))
    return [
        f"{file:<{widths[0]}}  {label:<{widths[1]}}  {probability:>11}  {runner_up}".rstrip()
        for file, label, probability, runner_up in rows
    ]


def _json(
    model: onnx_runner.Model,
    predictions: Sequence[Prediction],
    unreadable: Sequence[Unreadable],
    skipped: Sequence[Path],
) -> dict[str, Any]:
    return {
        "trained_on": model.metadata.get("trained_on"),
        "model": str(model.path),
        "classes": model.classes,
        "views": model.views,
        "predictions": [
            {
                "file": str(prediction.file),
                "class": next(iter(prediction.probabilities)),
                "probability": next(iter(prediction.probabilities.values())),
                "probabilities": prediction.probabilities,
                "resized_from": prediction.resized_from,
            }
            for prediction in predictions
        ],
        "unreadable": [{"file": str(result.file), "why": result.why} for result in unreadable],
        "skipped": [str(file) for file in skipped],
    }


def _warn_resized(resized: Sequence[tuple[Path, tuple[int, int]]], size: tuple[int, int]) -> None:
    if resized:
        file, (width, height) = resized[0]
        more = f" and {len(resized) - 1:,} more" if len(resized) > 1 else ""
        _say(f"warning: resized to {size[1]}x{size[0]} pixels: {file} ({width}x{height}){more}")


def _introduce(path: Path, model: onnx_runner.Model, location: str) -> None:
    """Warn if the model only knows the bundled sample, and print which file it is unless the user named that file."""
    if model.metadata.get("trained_on") == SAMPLE_LABEL:
        classes = ", ".join(model.classes)
        _say(f"this model was trained on drawn shapes ({SAMPLE_LABEL}); it labels any photo as one of {classes}")
    if location != str(path):
        _say(f"model {models.shown(path)}")


def _say(message: str) -> None:
    """Print a line to standard error. Names in it can contain line breaks and terminal codes."""
    print(f"vgg-predict: {printable(message)}", file=sys.stderr)
