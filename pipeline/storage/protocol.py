"""What a workspace asks of its storage: the two implementations are `local` and `object_storage`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from pipeline.storage.locks import Holder, Waiting


class Storage(Protocol):
    """Where the files of a workspace are. Every path is one below the workspace's folder on this host.

    In a folder everything is where it is looked for: all that follows other hosts or tells them does nothing there,
    which is what a method does here unless it has to be implemented.
    """

    # --- what is there ------------------------------------------------------------------------------------------

    def shown(self, path: Path) -> str:
        """A path as people find it: in an object store, its address."""

    def size(self, path: Path) -> int:
        """The size of a file in bytes. Raises `OSError` when it is not there."""

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file's content."""

    def exists(self, path: Path) -> bool:
        """True for a file or a folder that is there."""

    def names(self, folder: Path) -> list[str]:
        """The names of the files directly in a folder."""

    def files(self, folder: Path) -> dict[str, int]:
        """Every file of a folder and the folders in it, as seen from there, with its size in bytes."""

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
        return None

    @property
    def trusted_since(self) -> float:
        """A listing from before this moment (monotonic) is good for a yes, not for a no: others may have finished."""
        return 0.0

    # --- copies -------------------------------------------------------------------------------------------------

    def fetch(
        self, folder: Path, files: Mapping[str, Any], digests: Mapping[str, str], everything: bool = False
    ) -> None:
        """Have the `files` of a stage here, each with its recorded size and SHA-256. See `Workspace.fetch`."""
        return None

    def publish(self, folder: Path, files: Mapping[str, Any], only: Mapping[str, str] | None = None) -> None:
        """Let other hosts see a finished stage. See `Workspace.publish`."""
        return None

    def publish_file(self, path: Path) -> None:
        """Let other hosts see a single small file, a pointer."""
        return None

    def move(self, folder: Path, target: Path) -> None:
        """Move a folder, or one file, within the workspace."""

    def delete(self, folder: Path) -> None:
        """Delete a folder for good; at no moment does a part of it count as finished."""

    def serve(self, model: Path, about: bytes, version: Path, stable: Path) -> None:
        """Have `model` and the manifest `about` in the folder `version`, and make `stable` lead there.

        At no moment is `stable` without a model. Former versions go when nobody can be reading them any more.
        """

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

    def publish_log(self, file: Path, progress: Path, lock: Path) -> None:
        """Let other hosts see what is new in the event log; `progress` notes how many lines they have."""
        return None
