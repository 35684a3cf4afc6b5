"""The two layouts of CIFAR-10: from the files of an archive to checked images and labels.

binary: `data_batch_<n>.bin`, `test_batch.bin` of 3,073-byte records, `batches.meta.txt` with a class name a line.
python: `data_batch_<n>`, `test_batch` as pickled dicts of `data` (N, 3072) and `labels`, `batches.meta`.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import pickles
from pipeline.dataset.refusal import ADVICE, Refused, shown
from pipeline.workspace.image_folder import Images
from pipeline.workspace.sources import BATCH, META

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_BATCHES, CIFAR10_BATCH_IMAGES = 5, 10_000

PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS

#: Bytes of one pickled batch and of the class names. CIFAR-10's have 31 MB and 158 bytes.
PICKLE_LIMIT, META_LIMIT = 1 << 29, 1 << 16

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Batch:
    """`images` (N, 3072) uint8, channel by channel and row by row; `labels` (N,) uint8."""

    images: Bytes
    labels: Bytes


@dataclass(frozen=True, eq=False)
class Content:
    """Everything that a data set holds, checked, still in batches."""

    train: list[Batch]
    test: list[Batch]
    classes: list[str]
    layout: str
    #: What people should know of it, a line each.
    remarks: list[str] = field(default_factory=list)
    #: The images that were read, when they came from a folder of images.
    images: Images | None = None


class Collector:
    """Takes the files of one archive in any order, checks each, and gives the whole in `finish`.

    With `strict` the data set must have exactly CIFAR-10's numbers of batches, images and classes; otherwise any
    number of images and of training batches 1..n is right. Labels must be below `label_limit`. Files are parsed
    on a second thread while the next one is being unpacked. Use as a context manager.
    """

    def __init__(self, strict: bool, label_limit: int) -> None:
        self._strict, self._label_limit = strict, label_limit
        self._batches: dict[str, concurrent.futures.Future[Batch]] = {}
        self._meta: tuple[str, bytes] | None = None
        self._others: list[str] = []
        self._seen: set[str] = set()
        self._parser = concurrent.futures.ThreadPoolExecutor(1)

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *exception: object) -> None:
        self._parser.shutdown(cancel_futures=True)

    def wants(self, name: str, size: int) -> bool:
        """Whether the file `name` belongs to the data set. Raises `Refused` when it cannot have `size` bytes."""
        match = BATCH.fullmatch(name)
        if match is None and name not in META:
            self._others.append(name)
            return False
        if name in self._seen:
            raise Refused(f"holds {name} twice")
        self._seen.add(name)
        limit = PICKLE_LIMIT if match else META_LIMIT
        if match and match[2]:
            self._check_records(name, size)
        elif not 0 < size <= limit:
            raise Refused(f"{name} has {size:,} bytes, expected 1 to {limit:,}")
        return True

    def add(self, name: str, content: bytes | bytearray) -> None:
        """Take the content of a file that `wants` said yes to."""
        if name in META:
            self._meta = (name, bytes(content))
        else:
            self._batches[name] = self._parser.submit(self._parse, name, content)

    def finish(self) -> Content:
        """The whole data set; raises `Refused` when a file is missing or wrong."""
        names = self._names()
        *train, test = (self._batches[name].result() for name in names)
        highest = max(int(batch.labels.max()) for batch in (*train, test))
        layout = "binary" if names[0].endswith(".bin") else "python"
        return Content(train, [test], self._classes(highest), layout)

    def _check_records(self, name: str, size: int) -> None:
        whole = CIFAR10_BATCH_IMAGES * RECORD
        if self._strict and size != whole:
            expected = f"{whole:,} ({CIFAR10_BATCH_IMAGES:,} images of {RECORD:,})"
            raise Refused(f"{name} has {size:,} bytes, expected {expected}")
        if size <= 0 or size % RECORD:
            expected = f"a multiple of {RECORD:,} (a label and 3,072 pixel values)"
            raise Refused(f"{name} has {size:,} bytes, expected {expected}")

    def _parse(self, name: str, content: bytes | bytearray) -> Batch:
        batch = _records(content) if name.endswith(".bin") else self._parse_pickle(name, content)
        wrong = np.flatnonzero(batch.labels >= self._label_limit)
        if wrong.size:
            first = int(wrong[0])
            found = f"{name}: image {first} has label {batch.labels[first]}, expected 0 to {self._label_limit - 1}"
            advice = ADVICE if self._strict else f"get a good copy, or raise architecture.classes ({self._label_limit})"
            raise Refused(found, advice)
        return batch

    def _parse_pickle(self, name: str, content: bytes | bytearray) -> Batch:
        value = pickles.load(content, name)
        images, labels = (_integers(name, key, value) for key in ("data", "labels"))
        if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS or not len(images):
            raise Refused(f"{name}: data is {images.dtype} {images.shape}, expected uint8 (N, {PIXELS})")
        if labels.shape != (len(images),):
            raise Refused(f"{name}: {len(images)} images, but labels of shape {labels.shape}")
        if self._strict and len(images) != CIFAR10_BATCH_IMAGES:
            raise Refused(f"{name} has {len(images):,} images, expected {CIFAR10_BATCH_IMAGES:,}")
        if labels.min() < 0 or labels.max() > 255:
            raise Refused(f"{name}: labels from {labels.min()} to {labels.max()}, expected 0 to 255")
        return Batch(np.ascontiguousarray(images), labels.astype(np.uint8))

    def _names(self) -> list[str]:
        """The files of the training batches in order and, last, that of the test batch, once they are complete."""
        suffixes = {".bin" if name.endswith(".bin") else "" for name in self._batches}
        if not suffixes:
            found = ", ".join(shown(name) for name in self._others[:5]) or "nothing"
            raise Refused(f"holds no CIFAR-10 batches (data_batch_1.bin, …); found {found}")
        if len(suffixes) > 1:
            raise Refused("holds batches of both the binary and the python layout")
        suffix = suffixes.pop()
        present = [int(match[1]) for match in map(BATCH.fullmatch, self._batches) if match and match[1]]
        last = CIFAR10_BATCHES if self._strict else max(present, default=1)
        names = [*(f"data_batch_{number}{suffix}" for number in range(1, last + 1)), f"test_batch{suffix}"]
        if missing := [name for name in names if name not in self._batches]:
            raise Refused(f"{', '.join(missing[:5])} missing; found {', '.join(sorted(self._batches)[:8])}")
        if extra := sorted(set(self._batches) - set(names)):
            raise Refused(f"{extra[0]} is one batch too many for CIFAR-10")
        return names

    def _classes(self, highest: int) -> list[str]:
        """The class names: those in the archive, CIFAR-10's own, or `class 0`, `class 1`, …"""
        if self._meta is None:
            named = self._strict or highest < len(CIFAR10_CLASSES)
            return list(CIFAR10_CLASSES) if named else [f"class {label}" for label in range(highest + 1)]
        file, content = self._meta
        names = _class_names(file, content)
        if any(not name.isprintable() or len(name) > 64 for name in names) or len(set(names)) != len(names):
            raise Refused(f"{file}: a class name is repeated, too long or not printable")
        if not highest < len(names) <= 256 or (self._strict and len(names) != len(CIFAR10_CLASSES)):
            expected = len(CIFAR10_CLASSES) if self._strict else f"{highest + 1} to 256"
            raise Refused(f"{file} has {len(names)} class names, expected {expected}")
        return names


def _records(content: bytes | bytearray) -> Batch:
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return Batch(np.ascontiguousarray(records[:, 1:]), records[:, 0].copy())


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


def _class_names(file: str, content: bytes) -> list[str]:
    if META[file] == "binary":
        try:
            return [line.strip() for line in content.decode().splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise Refused(f"{file} is not UTF-8 text") from None
    names = pickles.load(content, file).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
        raise Refused(f"{file}: label_names is missing or not a list of names")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
