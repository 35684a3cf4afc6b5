"""Local sources of data sets: which files belong to a data set, and what changed, from names, sizes and times only."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.config import OFFICIAL, Data
from pipeline.workspace import image_folder


class Layout(NamedTuple):
    """File names of a published data set in one of its two layouts."""

    published: str
    form: Literal["binary", "python"]
    #: With `{}` for a number from 1 if there are several.
    train: str
    test: str
    class_names: str


LAYOUTS = (
    Layout("cifar10", "binary", "data_batch_{}.bin", "test_batch.bin", "batches.meta.txt"),
    Layout("cifar10", "python", "data_batch_{}", "test_batch", "batches.meta"),
    Layout("cifar100", "binary", "train.bin", "test.bin", "fine_label_names.txt"),
    Layout("cifar100", "python", "train", "test", "meta"),
)

#: Every possible file name with its layout: of training batches, and of all files.
TRAINING_FILES = {layout.train.format(number): layout for layout in LAYOUTS for number in range(1, 1000)}
FILES = TRAINING_FILES | {name: layout for layout in LAYOUTS for name in (layout.test, layout.class_names)}

#: Size and time of each file of a source, by name.
State = dict[str, Any]


def state(data: Data) -> State | None:
    """Return the present state of a local source; None for a URL, the sample, or a missing or empty source.

    A missing source is not a change: users may delete it once the data set is made.
    """
    if data.is_sample or "://" in data.source:
        return None
    path = Path(data.source)
    try:
        if not path.is_dir():
            return {path.name: _size_and_time(path)}
        if holds_images(data, path):
            return image_folder.state(image_folder.scan(path), data.test_fraction)
        files = [file for place in batch_folders(path) for file in dataset_files(place)]
        return {file.relative_to(path).as_posix(): _size_and_time(file) for file in files} or None
    except OSError:
        return None


def holds_images(data: Data, path: Path) -> bool:
    """Whether a source is a folder of images, not an archive or an unpacked archive. Raises `OSError`."""
    return data.name not in OFFICIAL and path.is_dir() and not batch_folders(path)


def change(data: Data, listing: Path, known: Iterable[Any]) -> str:
    """Describe how a folder of images differs from the one recorded in `listing`; empty if unknown.

    `known` are the states that the folder had then.
    """
    path, before = Path(data.source), image_folder.read(listing)
    values = (past.get("test_fraction") for past in known if isinstance(past, dict))
    fractions = {fraction for fraction in values if isinstance(fraction, (int, float))}
    if fractions and data.test_fraction not in fractions:
        return f"data.test_fraction: {', '.join(map(str, fractions))} -> {data.test_fraction:g}"
    try:
        if before is None or not holds_images(data, path):
            return ""
        return image_folder.difference(before, image_folder.labelled(image_folder.scan(path))[0])
    except (OSError, image_folder.Unlabelled) as error:
        return str(error)


def recorded(pointer: dict[str, Any]) -> list[Any]:
    """Return the states of all copies of a source that are known to hold the data set of a pointer."""
    copies = pointer.get("copies")
    return [pointer.get("stat"), *(copies if isinstance(copies, list) else ())]


def same(present: State, known: Iterable[Any]) -> bool:
    """Whether a source is in one of the recorded states, comparing only files of the data set."""
    return any(isinstance(past, dict) and _same(present, past) for past in known)


def _same(present: State, recorded: State) -> bool:
    # Earlier versions recorded every file below a folder.
    counted = {name: value for name, value in recorded.items() if posixpath.basename(name) in FILES}
    places = {posixpath.dirname(name) for name in counted}
    here = {name: value for name, value in present.items() if posixpath.dirname(name) in places}
    return present == recorded or (bool(counted) and counted == here)


def batch_folders(folder: Path) -> list[Path]:
    """Return which of `folder` and its direct subfolders hold batches. Skips unreadable subfolders."""
    with os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir())
    return [place for place in (folder, *(folder / name for name in inside)) if _holds_batches(place)]


def _holds_batches(place: Path) -> bool:
    try:
        return any(file.name in TRAINING_FILES for file in dataset_files(place))
    except OSError:
        return False


def dataset_files(place: Path) -> list[Path]:
    """Return the files in a folder of batches that belong to the data set, sorted by name."""
    return [place / name for name in sorted(os.listdir(place)) if name in FILES and (place / name).is_file()]


def _size_and_time(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
