"""The interface of a workspace's storage, implemented here for a folder and in `object_storage` for a store."""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.errors import from_os_error
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
from pipeline.storage.locks import Holder, OnWait

log = logging.getLogger("vgg")

#: Seconds to keep a replaced model, for services that are about to open it.
READ_SECONDS = 3600.0


class Storage:
    """The files of a workspace in a folder. All paths are local paths below that folder. Stateless.

    Methods that exchange files with other hosts do nothing here.
    """

    def shown(self, path: Path) -> str:
        """Return a path as users know it: in an object store, its address."""
        return str(path)

    def size(self, path: Path) -> int:
        """Return the size of a file in bytes. Raises `OSError` if it is missing."""
        return path.stat().st_size

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file. Raises `OSError` if it is missing."""
        return sha256_file(path)

    def exists(self, path: Path) -> bool:
        """Whether a file or folder exists."""
        return os.path.lexists(path)

    def names(self, folder: Path) -> list[str]:
        """Return the sorted names of what is directly in a folder (in a store: its objects); empty if it is missing."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))
        return []

    def files(self, folder: Path) -> dict[str, int]:
        """Return the size in bytes of every file below a folder, by its path relative to that folder."""
        sizes, start = {}, len(f"{folder}/")
        for place, _, names in os.walk(folder):  # strings: pathlib takes twice as long for ten thousand files
            for path in (f"{place}/{name}" for name in names):
                with contextlib.suppress(OSError):  # deleted since it was listed
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        sizes[path[start:]] = status.st_size
        return sizes

    def folder_size(self, folder: Path) -> int:
        """Return the total size in bytes of all files below a folder."""
        return sum(self.files(folder).values())

    def is_unpublished(self, path: Path) -> bool:
        """Whether a manifest or pointer was written here and is not in the store."""
        return False

    def refresh(self, folders: Iterable[Path], inside: Sequence[str] = ("",), since: float = 0.0) -> bool:
        """List these folders and fetch the small JSON files (manifests, pointers) of their subfolders `inside`.

        In `inside`, "" is the folder itself. Renews listings older than `since` (monotonic), and returns whether there
        were any.
        """
        return False

    def refresh_matching(self, pattern: str, inside: Sequence[str] = ("",)) -> None:
        """Like `refresh`, for all folders that match a pattern such as `runs/cifar10-*/vgg11-*`."""

    def fetch(
        self, folder: Path, files: Mapping[str, Any], digests: Mapping[str, str], everything: bool = False
    ) -> None:
        """Fetch the `files` of a stage and check their size and SHA-256. See `Workspace.fetch`."""

    def publish(self, folder: Path, files: Mapping[str, Any], only: Mapping[str, str] | None = None) -> None:
        """Make a finished stage visible to other hosts. See `Workspace.publish`."""

    def publish_file(self, path: Path) -> None:
        """Make a single small file (a pointer) visible to other hosts."""

    def move(self, folder: Path, target: Path) -> None:
        """Move a folder or file within the workspace."""
        move(folder, target)

    def delete(self, folder: Path) -> None:
        """Delete a folder for good. If interrupted, no part of it passes for finished."""
        if not folder.name.startswith("."):  # else left by a killed `delete`
            hidden = folder.with_name(f".{folder.name}")
            remove(hidden)
            os.replace(folder, hidden)
            folder = hidden
        remove(folder)

    def serve(self, model: Path, about: bytes, version: Path, stable: Path) -> None:
        """Put `model` and its manifest `about` into the folder `version`, then point `stable` there.

        `stable` always holds a model. Deletes former versions once nobody can be reading them any more.
        """

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
        except OSError:  # the file system has no links, or had none when `stable` was made
            if stable.is_symlink():  # writing through it would change the former version
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

    def hold(self, name: str, what: str, wait: bool, on_wait: OnWait) -> AbstractContextManager[object]:
        """Hold a lock against other hosts. `Workspace.hold` also holds it against local processes."""
        return contextlib.nullcontext()

    def holder(self, name: str) -> Holder | None:
        """Return the holder of a lock on any host, or None."""
        return None

    @property
    def lock_lost(self) -> bool:
        """Whether another host took over a lock that this process held."""
        return False

    def read_log(self, file: Path) -> list[str]:
        """Return the lines of the event logs of all hosts, in order."""
        try:
            return read_regular(file).decode(errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            log.warning("%s", from_os_error(error, "read the event log", "move it away"))
            return []

    def publish_log(self, file: Path, progress: Path, lock: Path) -> None:
        """Publish new lines of the event log; the file `progress` holds how many are published."""


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Call `make` for a temporary path, then rename that to `path`."""
    temporary = path.with_name(f".{path.name}.new")
    remove(temporary)
    try:
        make(temporary)
        os.replace(temporary, path)
    finally:
        remove(temporary)


#: The storage of every workspace in a folder.
LOCAL = Storage()
