"""A folder of images as a data set: read on all cores, upright, RGB, 32x32, and shared out between training and test.

The order of the images follows from their pixels, so that a renamed file is no new data set. Memory holds the pixels
twice, and one image for each core.
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
from pipeline.dataset.refusal import Refused, Tell
from pipeline.files import sha256_file
from pipeline.process.cores import usable_cores
from pipeline.text import counted, shown
from pipeline.workspace import image_folder
from pipeline.workspace.image_folder import examples

#: More unreadable images than this share of all are a mistake of the whole folder.
UNREADABLE = 0.1

#: Images that are read between two reports of progress.
_GROUP = 256


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that was read: its row in the array, what its pixels are known by, and where it belongs."""

    row: int
    pixels: bytes
    name: str
    label: str
    part: str


def read(folder: Path, test_fraction: float, most_classes: int, tell: Tell) -> Content:
    """The images of a folder. Raises `Refused` when they are no data set, `OSError` when it cannot be listed."""
    tell(0.0, "looking for images")
    seen = image_folder.scan(folder)
    try:
        images, remarks = image_folder.labelled(seen)
    except image_folder.Unlabelled as error:
        raise Refused(str(error), error.advice) from None
    classes = sorted({image.label for image in images.values()})
    if len(classes) > most_classes:
        raise Refused(
            f"has {len(classes)} classes, but architecture.classes is {most_classes}",
            f"set architecture.classes to {len(classes)}, or leave it out",
        )
    array = np.empty((len(images), PIXELS), np.uint8)
    found = list(_read_all(Path(seen.root), images, array, test_fraction, tell))
    remarks += _unreadable([one for one in found if isinstance(one, str)], len(images))
    train, test, more = _shared_out([one for one in found if isinstance(one, _Read)])
    remarks += more + _check_parts(train, test, classes)
    index = {name: label for label, name in enumerate(classes)}
    training, tests = (
        Batch(array[[one.row for one in part]], np.array([index[one.label] for one in part], np.uint8))
        for part in (train, test)
    )
    return Content([training], [tests], classes, "images", remarks, images)


def _read_all(
    root: Path, images: image_folder.Images, array: Bytes, test_fraction: float, tell: Tell
) -> Iterator[_Read | str]:
    """Read each image into its row of the array; gives what is known of it, or why it cannot be used."""
    rows = iter(enumerate(sorted(images)))
    done = 0
    with ThreadPoolExecutor(usable_cores()) as threads:  # Pillow decodes and scales without the interpreter's lock
        # In groups: a task in the queue takes nearly as much memory as the pixels of an image.
        while group := list(islice(rows, _GROUP)):
            yield from threads.map(partial(_read_one, root, images, array, test_fraction), group)
            done += len(group)
            tell(done / len(images), f"reading images, {done:,} of {len(images):,}")


def _read_one(
    root: Path, images: image_folder.Images, array: Bytes, test_fraction: float, numbered: tuple[int, str]
) -> _Read | str:
    row, name = numbered
    path, image = root / name, images[name]
    if image.size < 0:  # named in labels.csv
        return f"{shown(name)}: no such image, or a link out of the folder"
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
    return _Read(row, hashlib.blake2b(array[row].data, digest_size=16).digest(), name, image.label, part)


def _part(path: Path, test_fraction: float) -> str:
    """The part of an image in a folder that does not say: by the content of its file, so that it stays where it is."""
    return "test" if int(sha256_file(path)[:16], 16) < test_fraction * 2**64 else "train"


def _unreadable(reasons: Sequence[str], images: int) -> list[str]:
    if not reasons:
        return []
    first = "; ".join(reasons[:3])
    if len(reasons) > UNREADABLE * images:
        found = f"{len(reasons):,} of {counted(images, 'image')} cannot be used ({first})"
        raise Refused(found, "repair or remove them")
    return [f"left out: {counted(len(reasons), 'image')} that cannot be used ({first})"]


def _shared_out(found: Sequence[_Read]) -> tuple[list[_Read], list[_Read], list[str]]:
    """Training and test images in the order of their pixels, and lines about images that are there more than once.

    What is tested with is not trained with: a training image that is a test image, too, is left out.
    """
    found = sorted(found, key=lambda one: (one.pixels, one.label, one.name))
    test = [one for one in found if one.part == "test"]
    tested = {one.pixels: one for one in test}
    train = [one for one in found if one.part == "train" and one.pixels not in tested]
    both = [(one, tested[one.pixels]) for one in found if one.part == "train" and one.pixels in tested]
    used = sorted([*train, *test], key=lambda one: (one.pixels, one.label))
    torn = [pair for pair in pairwise(used) if pair[0].pixels == pair[1].pixels and pair[0].label != pair[1].label]
    remarks = []
    if both:
        remarks.append(f"left out of training: {counted(len(both), 'image')} that are also test images{_pair(both)}")
    if torn:
        remarks.append(f"{counted(len(torn), 'image')} in more than one class{_pair(torn)}")
    return train, test, remarks


def _pair(pairs: Sequence[tuple[_Read, _Read]]) -> str:
    """The first of some pairs of the same image."""
    return f" (for example {shown(pairs[0][0].name)} = {shown(pairs[0][1].name)})"


def _check_parts(train: Sequence[_Read], test: Sequence[_Read], classes: Sequence[str]) -> list[str]:
    """A line about classes that no test image has, if there are any. Raises `Refused` where it takes more than that."""
    trained, tested = ({one.label for one in part} for part in (train, test))
    if missing := [name for name in classes if name not in trained]:
        raise Refused(f"no training images of class {examples(missing)}", "add some, or remove the class")
    if not test:
        raise Refused("no test images", "add some, or raise data.test_fraction if that decides")
    unmeasured = trained - tested
    told = f"no test images of class {examples(unmeasured)}: its recall cannot be measured"
    return [told] if unmeasured else []
