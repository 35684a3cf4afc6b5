"""A data set on disk: four arrays ready to memory-map, and a manifest, which is written last.

train_images.npy (N, 3, 32, 32) uint8    train_labels.npy (N,) uint8
test_images.npy  (M, 3, 32, 32) uint8    test_labels.npy  (M,) uint8
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset.layouts import Bytes, Content, blocks
from pipeline.errors import WorkspaceError
from pipeline.files import atomic_writer, remove_debris, sync_directory
from pipeline.workspace import manifest

TEST_FILES = ("test_images.npy", "test_labels.npy")
FILES = ("train_images.npy", "train_labels.npy", *TEST_FILES)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A finished data set. The images are read-only memory maps, read from disk only when used."""

    train_images: np.memmap[Any, np.dtype[np.uint8]]
    train_labels: Bytes
    test_images: np.memmap[Any, np.dtype[np.uint8]]
    test_labels: Bytes
    classes: list[str]
    manifest: dict[str, Any]


def digest(content: Content) -> str:
    """Return the identity of a data set: SHA-256 over class names, training and test images and labels, in order."""
    value = hashlib.sha256("\n".join(content.classes).encode())
    for split in (content.train, content.test):
        for rows in (*(batch.images for batch in split), *(batch.labels for batch in split)):
            for block in blocks(rows):
                value.update(block)
    return value.hexdigest()


def write(folder: Path, content: Content, details: Mapping[str, Any]) -> dict[str, Any]:
    """Write `content` into `folder` and return its manifest. Raises `OSError`, and `WorkspaceError` for a link.

    A kill at any time leaves nothing that counts as a data set.
    """
    if folder.is_symlink():
        what = "found a symbolic link, through which dataset must not write"
        raise WorkspaceError(f"{folder}: {what}: replace it with a folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.MANIFEST).unlink(missing_ok=True)
    remove_debris(folder, "*.npy")
    hashes = {}
    for split, batches in (("train", content.train), ("test", content.test)):
        images, labels = f"{split}_images.npy", f"{split}_labels.npy"
        hashes[images] = _write_array(folder / images, [batch.images for batch in batches], (3, 32, 32))
        hashes[labels] = _write_array(folder / labels, [batch.labels for batch in batches], ())
    sync_directory(folder.parent)
    return finish(folder, details, hashes)


def finish(folder: Path, details: Mapping[str, Any], hashes: Mapping[str, str] = {}) -> dict[str, Any]:
    """Write the manifest of a folder whose arrays are in place. Hashes every file that `hashes` lacks."""
    remove_debris(folder, manifest.MANIFEST)
    return manifest.write(folder, "dataset", FILES, {}, details, hashes)


def intact(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return the manifest of the data set in `folder` if it is whole, undamaged and has `digest`; reads every byte."""
    if manifest.problems(folder, "dataset", {}):
        return None
    value = manifest.read(folder)
    if value is None or value["details"].get("digest") != digest or set(value["files"]) != set(FILES):
        return None
    return None if manifest.damage(folder, value) else value


def load(folder: Path) -> Dataset:
    """Open the data set in `folder`. Raises `WorkspaceError` when it is unfinished or damaged."""
    problems = manifest.problems(folder, "dataset", {})
    value = manifest.read(folder)
    if problems or value is None:
        raise WorkspaceError(f"{folder}: {'; '.join(problems)}; run the dataset stage again")
    return Dataset(*_part(folder, value, "train"), *_part(folder, value, "test"), value["details"]["classes"], value)


def verify(folder: Path, value: Mapping[str, Any]) -> None:
    """Hash every byte of a data set (CIFAR-10: 0.1 s). Raises `WorkspaceError` if it does not match its manifest."""
    if damaged := manifest.damage(folder, value):
        raise WorkspaceError(
            f"{folder}: {'; '.join(damaged)}; restore it, or set it aside to recreate it "
            "(luigi --module tasks SetAside --stage dataset --confirm)"
        )


def load_test(folder: Path) -> tuple[Bytes, Bytes, list[str]]:
    """Verify and return the test images (n, 3, 32, 32), their labels (n,) and the classes. Raises `WorkspaceError`.

    The training images may be missing.
    """
    value = manifest.read(folder)
    if value is None:
        raise WorkspaceError(f"{folder}: missing or unfinished")
    for name in TEST_FILES:
        manifest.verified(folder, value, name)
    return *_part(folder, value, "test"), value["details"]["classes"]


def _write_array(path: Path, parts: Sequence[Bytes], shape: tuple[int, ...]) -> str:
    """Write `parts` as one array of rows of `shape`, without joining them in memory. Returns the file's SHA-256."""
    header, sha256 = io.BytesIO(), hashlib.sha256()
    description = {"descr": "|u1", "fortran_order": False, "shape": (sum(len(part) for part in parts), *shape)}
    np.lib.format.write_array_header_1_0(header, description)
    with atomic_writer(path) as file, ThreadPoolExecutor(1) as hasher:
        for block in chain([header.getbuffer()], *map(blocks, parts)):
            hashed = hasher.submit(sha256.update, block)
            file.write(block)
            hashed.result()
    return sha256.hexdigest()


def _part(folder: Path, value: Mapping[str, Any], split: str) -> tuple[Any, Any]:
    count = int(value["details"][f"{split}_images"])
    return _open(folder / f"{split}_images.npy", (count, 3, 32, 32)), _open(folder / f"{split}_labels.npy", (count,))


def _open(path: Path, shape: tuple[int, ...]) -> Any:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a flipped bit in its header can surface as almost anything
        raise WorkspaceError(f"{path}: cannot be read ({error}); run the dataset stage again") from None
    if array.shape != shape or array.dtype != np.uint8:
        raise WorkspaceError(
            f"{path}: {array.dtype} {array.shape}, expected uint8 {shape}; run the dataset stage again"
        )
    return array
