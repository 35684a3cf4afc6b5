"""A workspace in a folder: what is there is what the file system says, and nobody has to be told of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pipeline.files import move, read_regular, sha256_file
from pipeline.storage.protocol import Storage


class LocalStorage(Storage):
    """`Storage` in a folder. It has no state."""

    def shown(self, path: Path) -> str:
        return str(path)

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def sha256(self, path: Path) -> str:
        return sha256_file(path)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def names(self, folder: Path) -> list[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))
        return []

    def below(self, folder: Path) -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file()]

    def size_of(self, folder: Path) -> int:
        return sum(path.stat().st_size for path in self.below(folder))

    def move(self, folder: Path, target: Path) -> None:
        move(folder, target)

    def read_log(self, file: Path) -> list[str]:
        with contextlib.suppress(OSError):
            return read_regular(file).decode(errors="replace").splitlines()
        return []


#: The storage of every workspace that is in a folder.
LOCAL = LocalStorage()
