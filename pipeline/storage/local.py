"""A workspace in a folder: what is there is what the file system says, and nobody has to be told of it."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from pipeline.files import move, read_regular, remove, sha256_file
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

    def files(self, folder: Path) -> dict[Path, int]:
        found = {}
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):  # gone this very moment
                    status = os.lstat(os.path.join(place, name))
                    if stat.S_ISREG(status.st_mode):
                        found[Path(place, name)] = status.st_size
        return found

    def move(self, folder: Path, target: Path) -> None:
        move(folder, target)

    def delete(self, folder: Path) -> None:
        hidden = folder.with_name(f".{folder.name}")
        if not folder.name.startswith("."):  # else it was left by one that was killed here
            os.replace(folder, hidden)
        remove(hidden)

    def read_log(self, file: Path) -> list[str]:
        with contextlib.suppress(OSError):
            return read_regular(file).decode(errors="replace").splitlines()
        return []


#: The storage of every workspace that is in a folder.
LOCAL = LocalStorage()
