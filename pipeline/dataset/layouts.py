"""The layouts of CIFAR-10 and CIFAR-100: from the files of an archive to checked images and labels.

binary: records of a label (CIFAR-100: a coarse and a fine one) and 3,072 pixel values; class names, one per line.
python: pickled dicts of `data` (N, 3072) and `labels` (CIFAR-100: `fine_labels`), and one of the class names.
`pipeline.workspace.sources` has the file names. Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import OFFICIAL
from pipeline.dataset import pickles
from pipeline.dataset.refusal import ADVICE, Refused
from pipeline.text import shown
from pipeline.workspace.image_folder import Images
from pipeline.workspace.sources import FILES, TRAINING_FILES, Layout

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

PIXELS = 3 * 32 * 32

#: Largest pickled batch and largest file of class names, in bytes. CIFAR-100's are 155 MB and 2 kB.
PICKLE_LIMIT, META_LIMIT = 1 << 29, 1 << 16

Bytes = NDArray[np.uint8]


class _Published(NamedTuple):
    """Batches of a published data set, labels per image (the last one is used), and the prefix of the labels' keys."""

    batches: int
    batch_images: int
    test_images: int
    labels: int
    prefix: str


_PUBLISHED = {"cifar10": _Published(5, 10_000, 10_000, 1, ""), "cifar100": _Published(1, 50_000, 10_000, 2, "fine_")}


@dataclass(frozen=True, eq=False)
class Batch:
    """`images` (N, 3072) uint8, channel by channel and row by row, possibly strided; `labels` (N,) uint8."""

    images: Bytes
    labels: Bytes


def blocks(rows: Bytes) -> Iterator[memoryview]:
    """Yield the bytes of an array in order, block by block, so that a strided one is not copied as a whole."""
    for start in range(0, len(rows), 500):
        yield np.ascontiguousarray(rows[start : start + 500]).data


@dataclass(frozen=True, eq=False)
class Content:
    """The checked content of a data set, still in batches."""

    train: list[Batch]
    test: list[Batch]
    classes: list[str]
    layout: str
    #: Remarks for the user, one line each.
    remarks: list[str] = field(default_factory=list)
    #: The files read, for a folder of images.
    images: Images | None = None


class Collector:
    """Collects the files of one archive in any order; `finish` checks and returns the data set.

    Under the `name` of a published data set, the archive must have exactly its layout, batches, images and classes.
    Under any other name, it may have any number of images and of training batches 1..n. Labels must be below
    `label_limit`.
    """

    def __init__(self, name: str, label_limit: int) -> None:
        self._name, self._strict, self._label_limit = name, name in OFFICIAL, label_limit
        self._contents: dict[str, bytes | bytearray] = {}
        self._others: list[str] = []

    def wants(self, name: str, size: int) -> bool:
        """Whether the file `name` belongs to the data set. Raises `Refused` if `size` is impossible for it."""
        layout = FILES.get(name)
        if layout is None:
            self._others.append(name[:100])  # a name in an archive can have 262,144 characters
            return False
        if name in self._contents:
            raise Refused(f"holds {name} twice")
        limit = META_LIMIT if name == layout.class_names else PICKLE_LIMIT
        if layout.form == "binary" and name != layout.class_names:
            record = _PUBLISHED[layout.published].labels + PIXELS
            if size <= 0 or size % record:
                raise Refused(
                    f"{name} has {size:,} bytes, expected a multiple of {record:,} (one image with its label)"
                )
            self._check_count(layout, name, size // record)
        elif not 0 < size <= limit:
            raise Refused(f"{name} has {size:,} bytes, expected 1 to {limit:,}")
        return True

    def add(self, name: str, content: bytes | bytearray) -> None:
        """Add the content of a file for which `wants` returned True."""
        self._contents[name] = content

    def finish(self) -> Content:
        """Return the whole data set. Raises `Refused` when a file is missing or wrong."""
        layout = self._layout()
        *train, test = (self._batch(layout, name, self._contents.pop(name)) for name in self._names(layout))
        highest = max(int(batch.labels.max()) for batch in (*train, test))
        return Content(train, [test], self._classes(layout, highest), layout.form)

    def _check_count(self, layout: Layout, name: str, images: int) -> None:
        published = _PUBLISHED[layout.published]
        expected = published.test_images if name == layout.test else published.batch_images
        if self._name == layout.published and images != expected:
            raise Refused(f"{name} has {images:,} images, but that of {OFFICIAL[self._name].title} has {expected:,}")

    def _batch(self, layout: Layout, name: str, content: bytes | bytearray) -> Batch:
        published = _PUBLISHED[layout.published]
        if layout.form == "binary":
            records = np.frombuffer(content, np.uint8).reshape(-1, published.labels + PIXELS)
            batch = Batch(records[:, published.labels :], records[:, published.labels - 1].copy())
        else:
            batch = _unpickled(name, content, f"{published.prefix}labels")
            self._check_count(layout, name, len(batch.images))
        invalid = np.flatnonzero(batch.labels >= self._label_limit)
        if invalid.size:
            first = int(invalid[0])
            reason = f"{name}: image {first} has label {batch.labels[first]}, expected 0 to {self._label_limit - 1}"
            advice = ADVICE if self._strict else f"get a good copy, or raise architecture.classes ({self._label_limit})"
            raise Refused(reason, advice, fits="" if self._strict else self._name)
        return batch

    def _layout(self) -> Layout:
        """Return the layout of the training batches, of which there must be exactly one."""
        layouts = {name: FILES[name] for name in self._contents if name in TRAINING_FILES}
        if not layouts:
            others = ", ".join(shown(name) for name in [*self._contents, *self._others][:5]) or "nothing"
            raise Refused(f"holds no CIFAR-10 or CIFAR-100 batches (data_batch_1.bin, train.bin, …); found {others}")
        first, layout = min(layouts.items())
        if other := next((name for name in layouts if layouts[name] != layout), None):
            raise Refused(f"holds batches of more than one layout: {first} and {other}")
        if self._strict and layout.published != self._name:
            advice = f"set data.name to {layout.published}, or data.source to a copy of {OFFICIAL[self._name].title}"
            reason = f"is {OFFICIAL[layout.published].title} ({first}), but data.name is {self._name}"
            raise Refused(reason, advice, fits=layout.published)
        return layout

    def _names(self, layout: Layout) -> list[str]:
        """Return the names of the training batches in order, then of the test batch; `Refused` if one is missing."""
        present = sorted(name for name in self._contents if FILES[name] == layout and name != layout.class_names)
        last = _PUBLISHED[layout.published].batches if self._strict else sum(map(TRAINING_FILES.__contains__, present))
        names = [*(layout.train.format(number) for number in range(1, last + 1)), layout.test]
        if missing := [name for name in names if name not in present]:
            raise Refused(f"{', '.join(missing[:5])} missing; found {', '.join(present[:8])}")
        if extra := set(present) - set(names):
            raise Refused(f"unexpected {min(extra)}: {OFFICIAL[self._name].title} has {last} batches")
        return names

    def _classes(self, layout: Layout, highest: int) -> list[str]:
        """Return the class names in the archive, or else CIFAR-10's, or else `class 0`, `class 1`, …"""
        count = OFFICIAL[self._name].classes if self._strict else None
        file = layout.class_names
        if file not in self._contents:
            if layout.published == "cifar10" and (self._strict or highest < len(CIFAR10_CLASSES)):
                return list(CIFAR10_CLASSES)
            return [f"class {label}" for label in range(count or highest + 1)]
        names = _class_names(layout, file, self._contents[file])
        if any(not name.isprintable() or len(name) > 64 for name in names) or len(set(names)) != len(names):
            raise Refused(f"{file}: a class name is repeated, too long or not printable")
        if not highest < len(names) <= 256 or len(names) != (count or len(names)):
            raise Refused(f"{file} has {len(names)} class names, expected {count or f'{highest + 1} to 256'}")
        return names


def _unpickled(name: str, content: bytes | bytearray, key: str) -> Batch:
    value = pickles.load(content, name)
    images, labels = _integers(name, "data", value), _integers(name, key, value)
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS or not len(images):
        raise Refused(f"{name}: data is {images.dtype} {images.shape}, expected uint8 (N, {PIXELS})")
    if labels.shape != (len(images),):
        raise Refused(f"{name}: {len(images)} images, but {key} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() > 255:
        raise Refused(f"{name}: {key} from {labels.min()} to {labels.max()}, expected 0 to 255")
    return Batch(images, labels.astype(np.uint8))


def _integers(name: str, key: str, value: dict[str, Any]) -> NDArray[Any]:
    item = value.get(key)
    try:
        if isinstance(item, pickles.Array):
            return item.to_numpy()
        if isinstance(item, list) and item and all(type(entry) is int for entry in item):
            return np.array(item, np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused(f"{name}: {key} cannot be read ({shown(str(error))})") from None
    found = "is missing" if item is None else f"is a {type(item).__name__}"
    raise Refused(f"{name}: {key} {found}, expected an array or list of integers")


def _class_names(layout: Layout, file: str, content: bytes | bytearray) -> list[str]:
    key = f"{_PUBLISHED[layout.published].prefix}label_names"
    if layout.form == "binary":
        try:
            return [line.strip() for line in content.decode().splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise Refused(f"{file} is not UTF-8 text") from None
    names = pickles.load(content, file).get(key)
    if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
        raise Refused(f"{file}: {key} is missing or not a list of names")
    # The cut keeps more than the 64 characters allowed, but little of a long name that is listed 20,000 times.
    return [name[:260].decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
