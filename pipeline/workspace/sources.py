"""What a look at a data set's source on this machine tells, without reading it: which files count, and their state.

Reads names, sizes and modification times; leaves nothing behind. Imports nothing heavy.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.config import OFFICIAL, Data
from pipeline.workspace import image_folder


class Layout(NamedTuple):
    """The names of the files of a published data set in one of its two layouts."""

    published: str
    form: Literal["binary", "python"]
    #: Numbered from 1 where there are several.
    train: str
    test: str
    class_names: str


LAYOUTS = (
    Layout("cifar10", "binary", "data_batch_{}.bin", "test_batch.bin", "batches.meta.txt"),
    Layout("cifar10", "python", "data_batch_{}", "test_batch", "batches.meta"),
    Layout("cifar100", "binary", "train.bin", "test.bin", "fine_label_names.txt"),
    Layout("cifar100", "python", "train", "test", "meta"),
)

#: Every file name that a data set can have, with its layout: those of training batches, and all.
TRAINING_FILES = {layout.train.format(number): layout for layout in LAYOUTS for number in range(1, 1000)}
FILES = TRAINING_FILES | {name: layout for layout in LAYOUTS for name in (layout.test, layout.class_names)}

#: Size and time of each file of a source, by its name there.
State = dict[str, Any]


def state(data: Data) -> State | None:
    """The present state of a local source; None for a URL, the sample, or a source that is gone or empty.

    A source that was removed after its data set was made is no reason to make it again.
    """
    if data.is_sample or "://" in data.source:
        return None
    path = Path(data.source)
    try:
        if not path.is_dir():
            return {path.name: _size_and_time(path)}
        if holds_images(data, path):
            return image_folder.state(image_folder.look(path), data.test_fraction)
        files = [file for place in batch_folders(path) for file in counted_files(place)]
        return {file.relative_to(path).as_posix(): _size_and_time(file) for file in files} or None
    except OSError:
        return None


def holds_images(data: Data, path: Path) -> bool:
    """Whether a source is a folder of images rather than an archive, or the folder of one. Raises `OSError`."""
    return data.name not in OFFICIAL and path.is_dir() and not batch_folders(path)


def change(data: Data, listing: Path, known: Iterable[Any]) -> str:
    """How a folder of images differs from what was read and recorded in `listing`; empty when that is unknown.

    `known` are the states in which it was then.
    """
    path, before = Path(data.source), image_folder.read(listing)
    found = (one.get("test_fraction") for one in known if isinstance(one, dict))
    fractions = {fraction for fraction in found if isinstance(fraction, (int, float))}
    if fractions and data.test_fraction not in fractions:
        return f"data.test_fraction: {', '.join(map(str, fractions))} -> {data.test_fraction:g}"
    try:
        if before is None or not holds_images(data, path):
            return ""
        return image_folder.difference(before, image_folder.labelled(image_folder.look(path))[0])
    except (OSError, image_folder.Unlabelled) as error:
        return str(error)


def recorded(pointer: dict[str, Any]) -> list[Any]:
    """The states of all copies of a source that are known to be the data set that a pointer names."""
    copies = pointer.get("copies")
    return [pointer.get("stat"), *(copies if isinstance(copies, list) else ())]


def same(present: State, known: Iterable[Any]) -> bool:
    """Whether a source is in one of the recorded states, as far as its files were read."""
    return any(isinstance(one, dict) and _same(present, one) for one in known)


def _same(present: State, recorded: State) -> bool:
    # Records of earlier versions name every file below a folder.
    counted = {name: value for name, value in recorded.items() if posixpath.basename(name) in FILES}
    places = {posixpath.dirname(name) for name in counted}
    here = {name: value for name, value in present.items() if posixpath.dirname(name) in places}
    return present == recorded or (bool(counted) and counted == here)


def batch_folders(folder: Path) -> list[Path]:
    """`folder` and the folders in it, those that hold batches. One inside that may not be listed is passed over."""
    with os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir())
    return [place for place in (folder, *(folder / name for name in inside)) if _holds_batches(place)]


def _holds_batches(place: Path) -> bool:
    try:
        return any(file.name in TRAINING_FILES for file in counted_files(place))
    except OSError:
        return False


def counted_files(place: Path) -> list[Path]:
    """The files in a folder of batches that belong to the data set, by name."""
    return [place / name for name in sorted(os.listdir(place)) if name in FILES and (place / name).is_file()]


def _size_and_time(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
