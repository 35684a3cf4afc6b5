"""Prediction: image files in, classes and probabilities out. `vgg-predict --model RUN image.png …`.

Reads an exported model (`.onnx`) and image files of any size and mode; leaves nothing behind. Needs neither MXNet nor
the data set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import current, inference, manifest
from pipeline.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.evaluation import softmax
from pipeline.files import sha256_file
from pipeline.mirror import default_cache, mirror_at, mirror_of
from pipeline.store import check_url, is_url
from pipeline.workspace import Run, Workspace, workspace_of

DEFAULT_MODEL = "artifacts"


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


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image, and why."""

    file: Path
    why: str


def classify(model: inference.Model, files: Sequence[Path]) -> list[Prediction | Unreadable]:
    """Classify image files, in their order. A file that cannot be read is answered with `Unreadable`."""
    with ThreadPoolExecutor(usable_cores()) as threads:  # decoding releases the interpreter lock
        images = list(threads.map(lambda file: _read(file, model.size), files))
    pixels = [image.pixels for image in images if isinstance(image, _Image)]
    empty = np.zeros((0, 3, *model.size), np.uint8)
    probabilities = iter(softmax(model.logits(np.stack(pixels) if pixels else empty)))
    return [
        _prediction(file, image, next(probabilities), model.classes) if isinstance(image, _Image) else image
        for file, image in zip(files, images, strict=True)
    ]


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files named in `paths`, and the image files below every folder among them.

    In a folder, what is hidden or does not end like an image is passed over. Raises `PipelineError` for a path that
    does not exist and for a folder without images.
    """
    pil = _pillow()
    pil.init()
    endings = set(pil.registered_extensions())
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in endings and not file.name.startswith(".") and file.is_file()
            )
            if not inside:
                raise PipelineError(f"{path}: no image files in this folder; give a folder with images, or the files")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise PipelineError(f"{path}: no such file or folder")
    return found


def resolve_model(path: Path) -> Path:
    """The `.onnx` file that `path` means.

    That is: itself; that of a run's folder; the current model that a pointer file (`current/…json`) names; or that of
    a workspace: its current model, or, while none was promoted, its newest run. The bare word `current` means the
    current model of the default workspace. Raises `PipelineError` when there is none, when there are several to choose
    from, or when the file is not what was recorded.
    """
    if path == Path("current") and not path.exists():
        return _current(Workspace(Path(DEFAULT_MODEL)))
    if path.is_file():
        return _promoted(path) if path.suffix == ".json" else path
    if not path.is_dir():
        raise PipelineError(
            f"{path}: no such model; give --model a run's folder, a workspace, `current`, or an .onnx file"
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
            os.listdir(workspace.runs)  # raises what kept it from being searched
        raise PipelineError(f"{path}: no exported model here: run the Export task first, or give --model an .onnx file")
    return resolve_model(newest)


def in_store(url: str) -> Path:
    """The path here that mirrors a workspace in a store, or a run in it; what it takes to choose is fetched."""
    root, runs, run = check_url(url).partition("/runs/")
    mirror = mirror_at(root, default_cache())
    if runs:
        path = mirror.root / "runs" / run
        mirror.know_folders([path, path / "export"])
        return path
    mirror.root.mkdir(parents=True, exist_ok=True)
    if not mirror.know_currents():
        mirror.know_runs(stages=("export",))
    return mirror.root


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status: 0, or 1 when anything could not be read."""
    options = _parser().parse_args(arguments)
    try:
        path = resolve_model(in_store(options.model) if is_url(options.model) else Path(options.model))
        if options.model != str(path):
            print(f"vgg-predict: model {path}", file=sys.stderr)
        model = inference.open_model(path)
        results = classify(model, find_images(options.paths))
    except (PipelineError, OSError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"vgg-predict: {why}", file=sys.stderr)
        return 1
    predictions = [result for result in results if isinstance(result, Prediction)]
    unreadable = [result for result in results if isinstance(result, Unreadable)]
    try:
        print(_json(path, model, predictions, unreadable) if options.json else _table(predictions), flush=True)
    except BrokenPipeError:  # the reader has seen enough (`vgg-predict … | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _warn_resized(predictions, model.size)
    for result in unreadable:
        print(f"vgg-predict: {_shown(result.file)}: {result.why}", file=sys.stderr)
    return 1 if unreadable else 0


# --- models -------------------------------------------------------------------------------------------------------


def _checked(folder: Path, exported: dict[str, Any]) -> Path:
    path = folder / "model.onnx"
    if mirror := mirror_of(folder):
        mirror.fetch(folder)
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise PipelineError(f"{path}: cannot read it: {error.strerror}; export the run again") from error
    if digest != manifest.digest(exported, path.name):
        raise PipelineError(f"{path}: damaged, not what its manifest recorded; export the run again")
    return path


def _current(workspace: Workspace) -> Path:
    """The exported model of the one run that is current in a workspace."""
    pointers = workspace.currents()
    if not pointers:
        raise PipelineError(f"{workspace.root}: no model was promoted yet: run the Retrain task, or give --model a run")
    if len(pointers) > 1:
        choice = ", ".join(str(pointer) for pointer in pointers)
        raise PipelineError(f"{workspace.root}: several models are current; choose with --model: {choice}")
    return _promoted(pointers[0])


def _promoted(pointer: Path) -> Path:
    """The exported model of the run that a pointer file names; it must be made from the weights that were promoted."""
    entry = current.read(pointer)
    if entry is None:
        raise PipelineError(f"{pointer}: no such file")
    folder = current.run_of(workspace_of(pointer), entry).stage("export")
    if mirror := mirror_of(folder):
        mirror.know_folders([folder])
    exported = manifest.read(folder)
    if exported is None:
        raise PipelineError(f"{folder}: the current model is not exported there: run the Export task for it again")
    if exported["details"].get("weights_sha256") != entry.weights_sha256:
        raise PipelineError(f"{folder}: exported from other weights than those that {pointer} names; export it again")
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


# --- images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    pixels: np.ndarray
    size: tuple[int, int]


def _read(file: Path, size: tuple[int, int]) -> _Image | Unreadable:
    """The image as (3, H, W) uint8 RGB of the model's size (height, width).

    Another size is scaled until the shorter side fits, and the middle is cut out: nothing is squashed.
    """
    pil = _pillow()
    from PIL import ImageOps

    height, width = size
    try:
        with pil.open(file) as opened:
            original = opened.size
            opened.draft("RGB", (4 * width, 4 * height))  # lets JPEG skip detail that scaling would throw away
            upright = ImageOps.exif_transpose(opened)
            image = _rgb(pil, upright)
            if image.size != (width, height):
                image = ImageOps.fit(
                    image, (width, height), pil.Resampling.BOX if max(original) < 64 else pil.Resampling.LANCZOS
                )
    except FileNotFoundError:
        return Unreadable(file, "no such file")
    except pil.UnidentifiedImageError:
        return Unreadable(file, "not an image, or of a kind that cannot be read here")
    except Exception as error:  # each decoder of Pillow has errors of its own for damaged files
        return Unreadable(file, f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}")
    return _Image(np.asarray(image).transpose(2, 0, 1), original)


def _rgb(pil: Any, image: Any) -> Any:
    """Any mode as 8-bit RGB; what is transparent becomes white, 16 bits become 8."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        deepest = 65535 if image.mode.startswith("I") and values.max(initial=0) > 255 else 255
        image = pil.fromarray((values.clip(0, deepest) * (255 / deepest)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise PipelineError(f"Pillow cannot be imported ({error}): pip install pillow") from error
    return Image


def _prediction(file: Path, image: _Image, probabilities: np.ndarray, classes: list[str]) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")
    height, width = image.pixels.shape[1:]
    return Prediction(
        file,
        {classes[int(index)]: float(probabilities[index]) for index in order},
        None if image.size == (width, height) else image.size,
    )


# --- output -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vgg-predict", description="Classify images with a trained network.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image files, or folders with images")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a run's folder, an .onnx file, `current`, or a workspace: its current model, or else its newest run; "
        "a run or a workspace may also be in a store, s3://… "
        "(default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with the probabilities of all classes")
    return parser


def _table(predictions: Sequence[Prediction]) -> str:
    rows = [("file", "class", "probability", "next")]
    for prediction in predictions:
        (label, probability), *others = prediction.probabilities.items()
        runner_up = f"{others[0][0]} {others[0][1]:.1%}" if others else ""
        rows.append((_shown(prediction.file), label, f"{probability:.1%}", runner_up))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{file:<{widths[0]}}  {label:<{widths[1]}}  {probability:>{widths[2]}}  {runner_up}".rstrip()
        for file, label, probability, runner_up in rows
    )


def _json(
    path: Path, model: inference.Model, predictions: Sequence[Prediction], unreadable: Sequence[Unreadable]
) -> str:
    value = {
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
    }
    return json.dumps(value, indent=2)


def _warn_resized(predictions: Sequence[Prediction], size: tuple[int, int]) -> None:
    resized = [prediction for prediction in predictions if prediction.resized_from]
    if resized:
        first = resized[0]
        assert first.resized_from is not None
        more = f" and {len(resized) - 1:,} more" if len(resized) > 1 else ""
        shown = f"{_shown(first.file)} ({first.resized_from[0]}x{first.resized_from[1]})"
        print(f"vgg-predict: warning: resized to {size[1]}x{size[0]} pixels: {shown}{more}", file=sys.stderr)


def _shown(file: Path) -> str:
    """A file name as it may be printed: a name can hold line breaks and terminal codes."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(file))


if __name__ == "__main__":
    sys.exit(main())
