"""A workspace in a folder: what is there is what the file system says, and nobody has to be told of it."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.files import (
    MANIFEST,
    link_or_copy,
    move,
    read_regular,
    remove,
    sha256_file,
    sync_directory,
    write_atomically,
)
from pipeline.storage.protocol import Storage

#: For how long after its replacement somebody may still be about to open a model that was served.
READ_SECONDS = 3600.0


class LocalStorage(Storage):
    """`Storage` in a folder. It has no state."""

    def shown(self, path: Path) -> str:
        return str(path)

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def sha256(self, path: Path) -> str:
        return sha256_file(path)

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def names(self, folder: Path) -> list[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))
        return []

    def files(self, folder: Path) -> dict[str, int]:
        found, start = {}, len(f"{folder}/")
        for place, _, names in os.walk(folder):  # text, as pathlib takes as long again for ten thousand files
            for path in (f"{place}/{name}" for name in names):
                with contextlib.suppress(OSError):  # gone this very moment
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        found[path[start:]] = status.st_size
        return found

    def move(self, folder: Path, target: Path) -> None:
        move(folder, target)

    def delete(self, folder: Path) -> None:
        if not folder.name.startswith("."):  # else it was left by one that was killed below
            hidden = folder.with_name(f".{folder.name}")
            remove(hidden)
            os.replace(folder, hidden)
            folder = hidden
        remove(folder)

    def serve(self, model: Path, about: bytes, version: Path, stable: Path) -> None:
        def fill(folder: Path) -> None:
            folder.mkdir(parents=True)
            link_or_copy(model, folder / model.name)
            write_atomically(folder / MANIFEST, about)

        former, served = Path(os.path.realpath(stable)), version / model.name
        if not ((version / MANIFEST).exists() and served.exists() and served.stat().st_size == model.stat().st_size):
            remove(version)
            _replace(version, fill)
        try:
            _replace(stable, lambda link: os.symlink(version.name, link))
        except OSError:  # a file system without links, or one that had none before
            if stable.is_symlink():  # whose target never changes
                raise
            stable.mkdir(exist_ok=True)
            for name in (model.name, MANIFEST):
                _replace(stable / name, functools.partial(link_or_copy, version / name))
        sync_directory(stable.parent)
        if former not in (stable, version) and former.exists():
            os.utime(former)
        for other in stable.parent.glob(f"{glob.escape(stable.name)}@*"):
            if other not in (version, former) and other.stat().st_mtime < time.time() - READ_SECONDS:
                remove(other)

    def read_log(self, file: Path) -> list[str]:
        with contextlib.suppress(OSError):
            return read_regular(file).decode(errors="replace").splitlines()
        return []


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Make something beside a path and put it there in one step."""
    beside = path.with_name(f".{path.name}.new")
    remove(beside)
    try:
        make(beside)
        os.replace(beside, path)
    finally:
        remove(beside)


#: The storage of every workspace that is in a folder.
LOCAL = LocalStorage()
