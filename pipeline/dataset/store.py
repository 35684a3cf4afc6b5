"""A data set on disk: four arrays ready to memory-map, and the manifest, which is written last.

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
    """A finished data set. The images are read-only memory maps: nothing is read until it is used."""

    train_images: np.memmap[Any, np.dtype[np.uint8]]
    train_labels: Bytes
    test_images: np.memmap[Any, np.dtype[np.uint8]]
    test_labels: Bytes
    classes: list[str]
    manifest: dict[str, Any]


def digest(content: Content) -> str:
    """What identifies a data set: SHA-256 over class names, training and test images and labels, in order."""
    value = hashlib.sha256("\n".join(content.classes).encode())
    for split in (content.train, content.test):
        for rows in (*(batch.images for batch in split), *(batch.labels for batch in split)):
            for block in blocks(rows):
                value.update(block)
    return value.hexdigest()


def write(folder: Path, content: Content, details: Mapping[str, Any]) -> dict[str, Any]:
    """Write `content` into `folder` and return its manifest. Raises `OSError`, and `WorkspaceError` for a link.

    A kill at any moment leaves nothing that counts as a data set.
    """
    if folder.is_symlink():
        raise WorkspaceError(f"{folder}: a symbolic link; nothing is written through it: put the folder itself there")
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
    """Write the manifest of a folder whose arrays are in place, with these SHA-256 or those of the files."""
    remove_debris(folder, manifest.MANIFEST)
    return manifest.write(folder, "dataset", FILES, {}, details, hashes)


def intact(folder: Path, digest: str) -> dict[str, Any] | None:
    """The manifest of the data set in `folder` if it is whole, undamaged and has `digest`; reads every byte."""
    if manifest.problems(folder, "dataset", {}):
        return None
    found = manifest.read(folder)
    if found is None or found["details"].get("digest") != digest or set(found["files"]) != set(FILES):
        return None
    return None if manifest.damage(folder, found) else found


def load(folder: Path) -> Dataset:
    """Open the data set in `folder`. Raises `WorkspaceError` when it is not finished or not what it should be."""
    problems = manifest.problems(folder, "dataset", {})
    found = manifest.read(folder)
    if problems or found is None:
        raise WorkspaceError(f"{folder}: {'; '.join(problems)}; run the dataset stage again")
    return Dataset(*_part(folder, found, "train"), *_part(folder, found, "test"), found["details"]["classes"], found)


def verify(folder: Path, found: Mapping[str, Any]) -> None:
    """Hash every byte of a data set (CIFAR-10: 0.1 s). Raises `WorkspaceError` if it is not what its manifest says."""
    if damaged := manifest.damage(folder, found):
        raise WorkspaceError(
            f"{folder}: {'; '.join(damaged)}; restore it, or set it aside to have it made again "
            "(luigi --module tasks SetAside --stage dataset --confirm)"
        )


def load_test(folder: Path) -> tuple[Bytes, Bytes, list[str]]:
    """The test images (n, 3, 32, 32), their labels (n,) and the classes, where the rest may not be here.

    Reads every byte of them. Raises `WorkspaceError` when they are gone or not as they were recorded.
    """
    found = manifest.read(folder)
    if found is None:
        raise WorkspaceError(f"{folder}: gone, or not finished")
    for name in TEST_FILES:
        manifest.verified(folder, found, name)
    return *_part(folder, found, "test"), found["details"]["classes"]


def _write_array(path: Path, parts: Sequence[Bytes], shape: tuple[int, ...]) -> str:
    """Write `parts` one after the other as one array of rows of `shape`, without joining them; gives its SHA-256."""
    header, sha256 = io.BytesIO(), hashlib.sha256()
    about = {"descr": "|u1", "fortran_order": False, "shape": (sum(len(part) for part in parts), *shape)}
    np.lib.format.write_array_header_1_0(header, about)
    with atomic_writer(path) as file, ThreadPoolExecutor(1) as second_core:
        for block in chain([header.getbuffer()], *map(blocks, parts)):
            hashed = second_core.submit(sha256.update, block)
            file.write(block)
            hashed.result()
    return sha256.hexdigest()


def _part(folder: Path, found: Mapping[str, Any], split: str) -> tuple[Any, Any]:
    count = int(found["details"][f"{split}_images"])
    return _open(folder / f"{split}_images.npy", (count, 3, 32, 32)), _open(folder / f"{split}_labels.npy", (count,))


def _open(path: Path, shape: tuple[int, ...]) -> Any:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a flipped bit in its header can surface as almost anything
        raise WorkspaceError(f"{path}: cannot be read ({error}); run the dataset stage again") from None
    if array.shape != shape or array.dtype != np.uint8:
        found = f"{array.dtype} {array.shape}, expected uint8 {shape}"
        raise WorkspaceError(f"{path}: {found}; run the dataset stage again")
    return array
