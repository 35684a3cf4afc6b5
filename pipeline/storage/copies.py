"""The files here that are copies of a store's objects: how they get here, and which version each is a copy of.

Leaves `.mirror.json`, the index of the copies, in the workspace's folder here. It can be lost: what is here is then
compared with what is in the store by its content.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pipeline import names
from pipeline.errors import WorkspaceError, from_os_error
from pipeline.files import open_regular, read_regular, sha256_file
from pipeline.storage.store import Store, Stored

INDEX = ".mirror.json"


class NotAsRecorded(WorkspaceError):
    """A file in the store is not what its manifest recorded. Nothing else is this error, least of all a bad network."""


class Lost(NotAsRecorded):
    """A file that a manifest recorded is not in the store, or has another size: whoever looks sees that it is lost."""


class _Index(Struct, frozen=True):
    """What is in the index: of each file here the version that it is a copy of, its size and its time."""

    url: str
    #: How many objects there were in the store when all of it was listed.
    objects: int = 0
    files: dict[str, tuple[str, int, int]] = {}


class Copies:
    """The files below `root` that are copies of what is in `store`."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store, self.root = store, root
        #: Keys of manifests and pointers that were made here and are not in the store.
        self.unpublished: set[str] = set()
        self.objects = 0
        self._load()

    # --- getting them -------------------------------------------------------------------------------------------

    def fetch(self, wanted: Mapping[str, Stored | None], files: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        """Have these objects here. One of `files` must have the size and the SHA-256 that a manifest recorded.

        Of others whoever needs them judges: a training resumes without its optimizer's state, for example. Raises
        `NotAsRecorded`.
        """

        def one(key: str) -> Stored | None:
            return self._fetch(key, wanted[key], digests.get(key, ""), files.get(key))

        copied = zip(wanted, self.store.each(one, wanted), strict=True)
        self.note({key: stored for key, stored in copied if stored})

    def _fetch(self, key: str, stored: Stored | None, digest: str, recorded: Any) -> Stored | None:
        """Have one file here; gives the object that it is now, and was not before, known to be a copy of."""
        file = self.root / key
        if self.is_copy(key, stored):
            return None
        if digest and file.is_file() and sha256_file(file) == digest:
            return stored
        if not digest and self.changed_here(key):
            return None  # a log with lines that are only here

        def check(partial: Path) -> None:
            size = partial.stat().st_size
            if recorded and size != recorded["size"]:
                raise Lost(f"{self.store}/{key}: has {size} bytes, not {recorded['size']} as recorded")
            if recorded and sha256_file(partial) != digest:
                raise NotAsRecorded(
                    f"{self.store}/{key}: damaged, not what its manifest recorded; restore it, or set the stage aside "
                    "(luigi --module tasks SetAside) to have it made again"
                )

        try:
            self.get(key, check)
        except FileNotFoundError:
            if not recorded:
                return None
            raise Lost(f"{self.store}/{key}: is gone; run the same command again to make it again") from None
        return stored

    def get(self, key: str, check: Callable[[Path], None] = lambda partial: None) -> None:
        """Have an object here, once `check` raised nothing about it. Raises `FileNotFoundError` when there is none."""
        with self._arriving(key) as partial:
            self.store.get(key, partial)
            check(partial)

    def write(self, key: str, content: bytes) -> None:
        """Have a small file here."""
        with self._arriving(key) as partial, self._writing():
            partial.write_bytes(content)

    @contextlib.contextmanager
    def _arriving(self, key: str) -> Iterator[Path]:
        """A file to be filled, which then takes its place below the root: all that comes in comes this way.

        Refused where a name, or a link here, leads elsewhere. Not synced to the disk: the store has it.
        """
        file = self.root / key
        folder = os.path.join(os.path.realpath(self.root), os.path.dirname(key))
        if not names.is_relative_path(key) or os.path.realpath(file.parent) != os.path.normpath(folder):
            raise WorkspaceError(f"{file}: leads out of {self.root}: nothing is written there; remove it")
        with self._writing():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".arriving.{os.urandom(8).hex()}.tmp")
            partial.touch(exist_ok=False)
        try:
            yield partial
            with self._writing():
                os.replace(partial, file)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what is written here: an error is one of this host's folder, not of the store."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.root)  # `write` leaves it out
            instead = "choose another folder for copies ([vgg] cache in luigi.cfg, or XDG_CACHE_HOME)"
            raise from_os_error(error, f"keep a copy of {self.store} here", instead) from error

    # --- the index ----------------------------------------------------------------------------------------------

    def is_copy(self, key: str, stored: Stored | None) -> bool:
        """True when the file here is known to be a copy of this version of the object."""
        file, entry = self.root / key, self._index.get(key)
        return bool(stored and entry and entry[0] == stored.version and file.is_file() and _state(file) == entry[1:])

    def version(self, key: str) -> str | None:
        """The version of the object that the file here was made a copy of; None when it never was."""
        entry = self._index.get(key)
        return entry[0] if entry else None

    def changed_here(self, key: str) -> bool:
        """True for a file here that was never a copy, or was changed since."""
        file, entry = self.root / key, self._index.get(key)
        return file.exists() and (entry is None or _state(file) != entry[1:])

    def note(self, news: Mapping[str, Stored | None], objects: int | None = None) -> None:
        """Note which versions the files here are copies of (None: of none); other processes do the same."""
        if not news and objects is None:
            return
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = open_regular(self.root / f"{INDEX}.lock", os.O_WRONLY | os.O_CREAT)
        with os.fdopen(descriptor, "wb") as lock:
            with contextlib.suppress(OSError):  # no locks: `locks.hold` says so to who works here
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            for key, stored in news.items():
                if stored is None:
                    self._index.pop(key, None)
                else:
                    self._index[key] = (stored.version, *_state(self.root / key))
            if objects is not None:
                self.objects = objects
            self.write(INDEX, msgspec.json.encode(_Index(str(self.store), self.objects, self._index)))

    def _load(self) -> None:
        try:
            value = msgspec.json.decode(read_regular(self.root / INDEX), type=_Index)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = _Index("")
        if value.url != str(self.store):
            value = _Index("")
        self._index, self.objects = value.files, value.objects


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
