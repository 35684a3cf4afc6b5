"""What a workspace asks of its storage, and how a folder does it; `object_storage` does the same with a store.

In a folder everything is where it is looked for, and nobody has to be told of it.
"""

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
from pipeline.storage.locks import Holder, Waiting

log = logging.getLogger("vgg")

#: For how long after its replacement somebody may still be about to open a model that was served.
READ_SECONDS = 3600.0


class Storage:
    """The files of a workspace, in a folder. Every path is one below the workspace's folder on this host.

    What follows other hosts, or tells them of something, does nothing here. It has no state.
    """

    # --- what is there ------------------------------------------------------------------------------------------

    def shown(self, path: Path) -> str:
        """A path as people find it: in an object store, its address."""
        return str(path)

    def size(self, path: Path) -> int:
        """The size of a file in bytes. Raises `OSError` when it is not there."""
        return path.stat().st_size

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file's content. Raises `OSError` when it is not there."""
        return sha256_file(path)

    def exists(self, path: Path) -> bool:
        """True for a file or a folder that is there."""
        return os.path.lexists(path)

    def names(self, folder: Path) -> list[str]:
        """The names of the files directly in a folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))
        return []

    def files(self, folder: Path) -> dict[str, int]:
        """Every file of a folder and the folders in it, as seen from there, with its size in bytes."""
        found, start = {}, len(f"{folder}/")
        for place, _, names in os.walk(folder):  # text, as pathlib takes as long again for ten thousand files
            for path in (f"{place}/{name}" for name in names):
                with contextlib.suppress(OSError):  # gone this very moment
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        found[path[start:]] = status.st_size
        return found

    def size_of(self, folder: Path) -> int:
        """Bytes of all files below a folder."""
        return sum(self.files(folder).values())

    def is_unpublished(self, path: Path) -> bool:
        """True for a manifest or pointer that was made here and is not in the store."""
        return False

    # --- what other hosts did -----------------------------------------------------------------------------------

    def refresh(self, folders: Iterable[Path], inside: Sequence[str] = ("",), since: float = 0.0) -> bool:
        """Have at hand what is in these folders, and the small JSON files (manifests, pointers) of those `inside`.

        `inside` names folders in each of `folders`, "" itself. A listing from before `since` (monotonic) is taken
        anew; gives whether one was.
        """
        return False

    def refresh_matching(self, pattern: str, inside: Sequence[str] = ("",)) -> None:
        """As `refresh`, for all folders that match a pattern, `runs/cifar10-*/vgg11-*` for example."""

    # --- copies -------------------------------------------------------------------------------------------------

    def fetch(
        self, folder: Path, files: Mapping[str, Any], digests: Mapping[str, str], everything: bool = False
    ) -> None:
        """Have the `files` of a stage here, each with its recorded size and SHA-256. See `Workspace.fetch`."""

    def publish(self, folder: Path, files: Mapping[str, Any], only: Mapping[str, str] | None = None) -> None:
        """Let other hosts see a finished stage. See `Workspace.publish`."""

    def publish_file(self, path: Path) -> None:
        """Let other hosts see a single small file, a pointer."""

    def move(self, folder: Path, target: Path) -> None:
        """Move a folder, or one file, within the workspace."""
        move(folder, target)

    def delete(self, folder: Path) -> None:
        """Delete a folder for good; at no moment does a part of it count as finished."""
        if not folder.name.startswith("."):  # else it was left by one that was killed below
            hidden = folder.with_name(f".{folder.name}")
            remove(hidden)
            os.replace(folder, hidden)
            folder = hidden
        remove(folder)

    def serve(self, model: Path, about: bytes, version: Path, stable: Path) -> None:
        """Have `model` and the manifest `about` in the folder `version`, and make `stable` lead there.

        At no moment is `stable` without a model. Former versions go when nobody can be reading them any more.
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

    # --- locks and the event log --------------------------------------------------------------------------------

    def hold(self, name: str, what: str, wait: bool, waiting: Waiting) -> AbstractContextManager[object]:
        """Hold a lock against other hosts. See `Workspace.hold`, which also holds it against processes here."""
        return contextlib.nullcontext()

    def holder(self, name: str) -> Holder | None:
        """Who holds the lock of this name on any host, or None."""
        return None

    @property
    def lost(self) -> bool:
        """True when another host took over a lock that this process held."""
        return False

    def read_log(self, file: Path) -> list[str]:
        """The lines of the event log in order, those of every host."""
        try:
            return read_regular(file).decode(errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            log.warning("%s", from_os_error(error, "read the event log", "move it away"))
            return []

    def publish_log(self, file: Path, progress: Path, lock: Path) -> None:
        """Let other hosts see what is new in the event log; `progress` notes how many lines they have."""


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
LOCAL = Storage()
