"""Prediction: classes and probabilities of image files. `vgg-predict --model RUN image.png …`.

Reads an exported model (`.onnx`) and image files of any size; writes nothing. Needs neither MXNet nor the data set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import streams
from pipeline.config import SAMPLE_LABEL, settings
from pipeline.errors import PipelineError
from pipeline.evaluation import softmax
from pipeline.export import onnx_runner
from pipeline.files import expanded
from pipeline.predict import image_files
from pipeline.predict.image_files import Picture, Unreadable
from pipeline.process.cores import usable_cores
from pipeline.retraining import registry
from pipeline.storage import check_url, default_cache, is_url, storage_at, storage_of
from pipeline.text import printable
from pipeline.workspace import Run, Workspace, manifest, workspace_of

DEFAULT_MODEL = "artifacts"

#: Most memory in bytes that the command may take, besides 8 times the model's file and a share per core: a file that
#: declares more than it holds ends in one line, not in a machine without memory.
MOST_MEMORY, CORE_MEMORY = 4 << 30, 64 << 20

#: A run or a pointer to the current one within the address of a store; what is before it is the workspace.
_WITHIN = re.compile(
    r"(.+)/(runs/[^/]+-[0-9a-f]{8}/[^/]+-[0-9a-f]{8}(?:@[^/]+)?|current/[^/]+/[^/]+\.json)(?:/export(?:/model\.onnx)?)?"
)


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image: class name -> probability, in falling order.

    `resized_from` is the image's (width, height) in pixels when that was not the model's.
    """

    file: Path
    probabilities: dict[str, float]
    resized_from: tuple[int, int] | None

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))


def classify(model: onnx_runner.Model, files: Sequence[Path]) -> list[Prediction | Unreadable]:
    """Classify image files; the results are in their order. A file that cannot be read gives `Unreadable`."""
    images = image_files.read_all(files, model.size)
    pixels = [image.pixels for image in images if isinstance(image, Picture)]
    empty = np.zeros((0, 3, *model.size), np.uint8)
    probabilities = iter(softmax(model.logits(np.stack(pixels) if pixels else empty)))
    return [
        _prediction(file, image, next(probabilities), model.classes) if isinstance(image, Picture) else image
        for file, image in zip(files, images, strict=True)
    ]


def resolve_model(path: Path) -> Path:
    """The `.onnx` file that `path` means.

    That is: itself; that of a run's folder; the current model that a pointer file (`current/…json`) names; or that of
    a workspace: its current model, or, while none was promoted, its newest run. The bare word `current` means the
    current model of the default workspace. Raises `PipelineError` when there is none, when there are several to choose
    from, or when the file is not what was recorded.
    """
    if path == Path("current") and not path.exists():
        return _current(Workspace(Path(default_model())))
    if path.is_file():
        return _promoted(path) if path.suffix == ".json" else path
    if not path.is_dir():
        raise PipelineError(
            f"{path}: no such model; --model takes a run's folder, a workspace, `current`, or an .onnx file"
        )
    for folder in (path, path / "export"):
        exported = manifest.read(folder)
        if exported is not None and exported.get("stage") == "export":
            return _checked(folder, exported)
    workspace = Workspace(path)
    if workspace.currents():
        return _current(workspace)
    newest = _newest_export(workspace)
    if newest is None:
        if workspace.runs.exists():
            os.listdir(workspace.runs)  # raises what made it unreadable
        raise PipelineError(
            f"{path}: no exported model here: run the Export task first, or choose an .onnx file with --model"
        )
    return resolve_model(newest)


def default_model() -> str:
    """The workspace of the tasks where none is named."""
    return settings.read().get("workspace") or DEFAULT_MODEL


def in_store(url: str) -> Path:
    """The path here of a workspace in a store, or of a run or pointer in it; what it takes to choose is fetched.

    A workspace may itself be below a folder `runs`: a run is known by the form of its name.
    """
    address = check_url(url)
    within = _WITHIN.fullmatch(address)
    root, place = within.groups() if within else (address, "")
    said = settings.read()
    cache = Path(said["cache"]) if said.get("cache") else default_cache()
    storage = storage_at(root, cache, settings.seconds(said, "retry_timeout", 60.0))
    if place:
        path = storage.root / place
        storage.refresh([path.parent] if path.suffix == ".json" else [path, path / "export"])
        return path
    storage.root.mkdir(parents=True, exist_ok=True)
    storage.refresh_matching("current/*")
    if not Workspace(storage.root, storage).currents():
        storage.refresh_matching("runs/*/*", ("export",))
    return storage.root


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 when anything could not be read."""
    if arguments is None:  # not in a program that calls this function
        streams.forgive()
    options = _parser().parse_args(arguments)
    path = Path(options.model or DEFAULT_MODEL)
    try:
        named = expanded(options.model, "--model") if options.model else default_model()
        path = resolve_model(in_store(named) if is_url(named) else Path(named))
        if arguments is None:
            _limit_memory(path)
        model = onnx_runner.open_model(path)
        _introduce(path, model, named)
        # The limit on pixels replaces Pillow's warning.
        warnings.filterwarnings("ignore", category=image_files.bomb_warning())
        files, skipped = image_files.find(options.paths)
        results = classify(model, files)
    except MemoryError:
        print(f"vgg-predict: {_shown(path)}: needs more memory than this command may use", file=sys.stderr)
        return 1
    except (PipelineError, OSError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"vgg-predict: {printable(str(why))}", file=sys.stderr)
        return 1
    predictions = [result for result in results if isinstance(result, Prediction)]
    unreadable = [result for result in results if isinstance(result, Unreadable)]
    shown = _json(path, model, predictions, unreadable, skipped) if options.json else _table(predictions)
    print(shown, flush=True)
    _warn_resized(predictions, model.size)
    if skipped:
        print(f"vgg-predict: {image_files.skipped(skipped)}", file=sys.stderr)
    for result in unreadable:
        print(f"vgg-predict: {_shown(result.file)}: {result.why}", file=sys.stderr)
    return 1 if unreadable else 0


def _limit_memory(model: Path) -> None:
    """Limit this process to the memory that it can need, threads' stacks included."""
    most = MOST_MEMORY + 8 * model.stat().st_size + CORE_MEMORY * usable_cores()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = [limit for limit in (most, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(allowed), hard))


# --- models -------------------------------------------------------------------------------------------------------


def _checked(folder: Path, exported: dict[str, Any]) -> Path:
    Workspace(folder, storage_of(folder)).fetch(folder)
    return manifest.verified(folder, exported, "model.onnx")


def _current(workspace: Workspace) -> Path:
    """The exported model of the one run that is current in a workspace."""
    pointers = workspace.currents()
    if not pointers:
        raise PipelineError(
            f"{_address(workspace.root)}: no model has been promoted yet: run the Retrain task, or pass --model a run"
        )
    if len(pointers) > 1:
        choice = ", ".join(map(_address, pointers))
        old = _shown(Path(registry.name_of(pointers[0])))
        raise PipelineError(
            f"{_address(workspace.root)}: several models are current; choose one with --model: {choice}; or retire "
            f"one: luigi --module tasks Retire --name {old} --confirm"
        )
    return _promoted(pointers[0])


def _promoted(pointer: Path) -> Path:
    """The exported model of the run that a pointer file names; it must be made from the weights that were promoted."""
    entry = registry.read(pointer)
    if entry is None:
        raise PipelineError(f"{pointer}: no such file")
    folder = registry.run_at(workspace_of(pointer), entry.run).stage("export")
    storage_of(folder).refresh([folder])
    exported = manifest.read(folder)
    if exported is None:
        raise PipelineError(f"{folder}: the current model is not exported: run the Export task for this run")
    if exported["details"].get("weights_sha256") != entry.weights_sha256:
        raise PipelineError(
            f"{folder}: exported from other weights than those promoted in {pointer}: export it again, or run the "
            "promotion gate on the new weights (luigi --module tasks Retrain)"
        )
    return _checked(folder, exported)


def _newest_export(workspace: Workspace) -> Path | None:
    """The export folder of the run of this workspace that was exported last."""
    found = []
    for root in sorted(workspace.runs.glob("*/*")):
        folder = Run(workspace, root.parent.name, root.name).stage("export")
        exported = manifest.read(folder)
        if exported is not None:
            found.append((exported["created"], folder))
    return max(found)[1] if found else None


def _address(path: Path) -> str:
    """A path as users know it: in a store, its address there."""
    return storage_of(path).shown(path)


# --- output -------------------------------------------------------------------------------------------------------


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
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image files, or folders of images")
    parser.add_argument(
        "--model",
        help="a run's folder, an .onnx file, `current`, or a workspace (its current model, else its newest run); "
        "runs and workspaces may also be in a store, s3://… "
        f"(default: [vgg] workspace in luigi.cfg, else {DEFAULT_MODEL})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the probabilities of all classes")
    return parser


def _table(predictions: Sequence[Prediction]) -> str:
    rows = [("file", "class", "probability", "runner-up")]
    for prediction in predictions:
        (label, probability), *others = prediction.probabilities.items()
        runner_up = f"{others[0][0]} {others[0][1]:.1%}" if others else ""
        rows.append((_shown(prediction.file), printable(label), f"{probability:.1%}", printable(runner_up)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{file:<{widths[0]}}  {label:<{widths[1]}}  {probability:>{widths[2]}}  {runner_up}".rstrip()
        for file, label, probability, runner_up in rows
    )


def _json(
    path: Path,
    model: onnx_runner.Model,
    predictions: Sequence[Prediction],
    unreadable: Sequence[Unreadable],
    skipped: Sequence[Path],
) -> str:
    value = {
        "trained_on": model.metadata.get("trained_on"),
        "model": str(path),
        "classes": model.classes,
        "views": model.views,
        "predictions": [
            {
                "file": str(prediction.file),
                "class": prediction.label,
                "probability": prediction.probabilities[prediction.label],
                "probabilities": prediction.probabilities,
                "resized_from": prediction.resized_from,
            }
            for prediction in predictions
        ],
        "unreadable": [{"file": str(result.file), "why": result.why} for result in unreadable],
        "skipped": [str(file) for file in skipped],
    }
    return json.dumps(value, indent=2, allow_nan=False)


def _warn_resized(predictions: Sequence[Prediction], size: tuple[int, int]) -> None:
    resized = [prediction for prediction in predictions if prediction.resized_from]
    if resized:
        first = resized[0]
        assert first.resized_from is not None
        more = f" and {len(resized) - 1:,} more" if len(resized) > 1 else ""
        shown = f"{_shown(first.file)} ({first.resized_from[0]}x{first.resized_from[1]})"
        print(f"vgg-predict: warning: resized to {size[1]}x{size[0]} pixels: {shown}{more}", file=sys.stderr)


def _introduce(path: Path, model: onnx_runner.Model, named: str) -> None:
    """Say first if the model only knows the bundled sample, then which model it is unless the user named the file."""
    if model.metadata.get("trained_on") == SAMPLE_LABEL:
        print(
            f"vgg-predict: this model was trained on drawn shapes ({SAMPLE_LABEL}); it labels any photo as one of "
            f"{printable(', '.join(model.classes))}",
            file=sys.stderr,
        )
    if named != str(path):
        print(f"vgg-predict: model {printable(_address(path))}", file=sys.stderr)


def _shown(file: Path) -> str:
    """A file name that is safe to print: names can hold line breaks and terminal codes."""
    return printable(str(file))
