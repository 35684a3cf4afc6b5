"""A workspace in a folder: what is there is what the file system says, and nobody has to be told of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.files import move, read_regular, sha256_file


class LocalStorage:
    """`Storage` in a folder. It has no state."""

    trusted_since = 0.0
    lost = False

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

    def is_unpublished(self, path: Path) -> bool:
        return False

    def refresh(self, folders: Iterable[Path], inside: Sequence[str] = ("",), since: float = 0.0) -> bool:
        return False

    def refresh_matching(self, pattern: str, inside: Sequence[str] = ("",)) -> None:
        pass

    def fetch(
        self, folder: Path, files: Mapping[str, Any], digests: Mapping[str, str], everything: bool = False
    ) -> None:
        pass

    def publish(self, folder: Path, files: Mapping[str, Any], only: Mapping[str, str] | None = None) -> None:
        pass

    def publish_file(self, path: Path) -> None:
        pass

    def move(self, folder: Path, target: Path) -> None:
        move(folder, target)

    def hold(self, name: str, what: str, wait: bool, waiting: Callable[[str], None]) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def holder(self, name: str) -> dict[str, Any] | None:
        return None

    def read_log(self, file: Path) -> list[str]:
        with contextlib.suppress(OSError):
            return read_regular(file).decode(errors="replace").splitlines()
        return []

    def publish_log(self, file: Path, progress: Path, lock: Path) -> None:
        pass


#: The storage of every workspace that is in a folder.
LOCAL = LocalStorage()
