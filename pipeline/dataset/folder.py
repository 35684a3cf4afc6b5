"""A folder of images as a data set: read on all cores, upright, RGB, 32x32, and split into training and test images.

The images are ordered by their pixels, so that renaming a file does not make a new data set. Memory holds the pixels
twice, plus one image for each core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from pipeline.config import IMAGE_SIZE
from pipeline.dataset import image_files
from pipeline.dataset.image_files import Picture
from pipeline.dataset.layouts import PIXELS, Batch, Bytes, Content
from pipeline.dataset.refusal import Progress, Refused
from pipeline.files import sha256_file
from pipeline.process.cores import usable_cores
from pipeline.text import counted, shown
from pipeline.workspace import image_folder
from pipeline.workspace.image_folder import examples

#: Largest share of unreadable images; with more of them the folder is refused.
MAX_UNREADABLE = 0.1

#: Images read between two progress reports.
_GROUP = 256


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded image: its row in the array, a hash of its pixels, its name, its class, and its part (train or test)."""

    row: int
    pixels: bytes
    name: str
    label: str
    part: str


def read(folder: Path, test_fraction: float, max_classes: int, progress: Progress) -> Content:
    """Read a folder of images. Raises `Refused` if they are not a data set, `OSError` if it cannot be listed."""
    progress(0.0, "looking for images")
    listing = image_folder.scan(folder)
    try:
        images, remarks = image_folder.labelled(listing)
    except image_folder.Unlabelled as error:
        raise Refused(str(error), error.advice) from None
    classes = sorted({image.label for image in images.values()})
    if len(classes) > max_classes:
        raise Refused(
            f"has {len(classes)} classes, but architecture.classes is {max_classes}",
            f"set architecture.classes to {len(classes)}, or leave it out",
        )
    array = np.empty((len(images), PIXELS), np.uint8)
    results = list(_read_all(Path(listing.root), images, array, test_fraction, progress))
    remarks += _unreadable([result for result in results if isinstance(result, str)], len(images))
    loaded = [result for result in results if isinstance(result, _Loaded)]
    train, test, more = _split(loaded)
    remarks += more + _check_parts(train, test, classes, loaded)
    index = {name: label for label, name in enumerate(classes)}
    training, tests = (
        Batch(array[[image.row for image in part]], np.array([index[image.label] for image in part], np.uint8))
        for part in (train, test)
    )
    return Content([training], [tests], classes, "images", remarks, images)


def _read_all(
    root: Path, images: image_folder.Images, array: Bytes, test_fraction: float, progress: Progress
) -> Iterator[_Loaded | str]:
    """Read each image into its row of the array; yields the loaded image, or why it cannot be used."""
    rows = iter(enumerate(sorted(images)))
    done = 0
    with ThreadPoolExecutor(usable_cores()) as threads:  # Pillow decodes and scales without the GIL
        # In groups, because a queued task takes nearly as much memory as the pixels of an image.
        while group := list(islice(rows, _GROUP)):
            yield from threads.map(partial(_read_one, root, images, array, test_fraction), group)
            done += len(group)
            progress(done / len(images), f"reading images, {done:,} of {len(images):,}")


def _read_one(
    root: Path, images: image_folder.Images, array: Bytes, test_fraction: float, numbered: tuple[int, str]
) -> _Loaded | str:
    row, name = numbered
    path, image = root / name, images[name]
    if image.size < 0:  # named in labels.csv
        unread = "is hidden, a link out of the folder, or no image by its extension"
        return f"{shown(name)}: {unread if path.exists() else 'no such image, or a link out of the folder'}"
    picture = image_files.read(path, (IMAGE_SIZE, IMAGE_SIZE))
    if not isinstance(picture, Picture):
        return f"{shown(name)}: {picture.why}"
    array[row] = picture.pixels.reshape(PIXELS)
    try:
        part = image.part or _part(path, test_fraction)
        status = path.stat()
    except OSError as error:
        return f"{shown(name)}: {error.strerror}"
    if (status.st_size, status.st_mtime_ns) != (image.size, image.time):
        return f"{shown(name)}: changed while the folder was being read"
    return _Loaded(row, hashlib.blake2b(array[row].data, digest_size=16).digest(), name, image.label, part)


def _part(path: Path, test_fraction: float) -> str:
    """Assign an image to train or test by a hash of its file, so that it keeps its part as the folder changes."""
    return "test" if int(sha256_file(path)[:16], 16) < test_fraction * 2**64 else "train"


def _unreadable(reasons: Sequence[str], images: int) -> list[str]:
    if not reasons:
        return []
    first = "; ".join(reasons[:3])
    if len(reasons) > MAX_UNREADABLE * images:
        raise Refused(
            f"{len(reasons):,} of {counted(images, 'image')} cannot be used ({first})", "repair or remove them"
        )
    return [f"left out: {counted(len(reasons), 'image')} that cannot be used ({first})"]


def _split(images: Sequence[_Loaded]) -> tuple[list[_Loaded], list[_Loaded], list[str]]:
    """Return training and test images, ordered by pixels, and remarks. Duplicates of test images are not trained on."""
    images = sorted(images, key=lambda image: (image.pixels, image.label, image.name))
    test = [image for image in images if image.part == "test"]
    tested = {image.pixels: image for image in test}
    train = [image for image in images if image.part == "train" and image.pixels not in tested]
    leaked = [(image, tested[image.pixels]) for image in images if image.part == "train" and image.pixels in tested]
    used = sorted([*train, *test], key=lambda image: (image.pixels, image.label))
    conflicts = [(one, two) for one, two in pairwise(used) if one.pixels == two.pixels and one.label != two.label]
    remarks = []
    if leaked:
        count = counted(len(leaked), "image")
        remarks.append(f"left out of training: {count} that are also test images{_example(leaked)}")
    if conflicts:
        remarks.append(f"{counted(len(conflicts), 'image')} in more than one class{_example(conflicts)}")
    return train, test, remarks


def _example(duplicates: Sequence[tuple[_Loaded, _Loaded]]) -> str:
    one, two = duplicates[0]
    return f" (for example {shown(one.name)} = {shown(two.name)})"


def _check_parts(
    train: Sequence[_Loaded], test: Sequence[_Loaded], classes: Sequence[str], loaded: Sequence[_Loaded]
) -> list[str]:
    """Return a remark about classes without test images. Raises `Refused` for a part that cannot be used at all."""
    trained, tested = ({image.label for image in part} for part in (train, test))
    if missing := [name for name in classes if name not in trained]:
        first, why = missing[0], ""
        parts = [image.part for image in loaded if image.label == first]
        if copies := parts.count("train"):
            why = f" ({shown(first)}: {counted(copies, 'image')} left out, as copies of test images)"
        elif parts:
            why = f" ({shown(first)}: {counted(len(parts), 'image')}, all in the test part)"
        raise Refused(f"no training images of class {examples(missing)}{why}", "add some, or remove the class")
    if not test:
        raise Refused("no test images", "add some, or raise data.test_fraction if that decides")
    if untested := trained - tested:
        return [f"no test images of class {examples(untested)}: its recall cannot be measured"]
    return []
