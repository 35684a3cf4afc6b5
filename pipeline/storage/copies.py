"""Local copies of a store's objects: how to download them, and which version each is a copy of.

Keeps an index of the copies, `.mirror.json`, in the local folder. It may be lost: files are then compared with the
store by content.
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
    """A file in the store does not match its manifest. Never raised for network errors."""


class FileLost(NotAsRecorded):
    """A file listed in a manifest is missing from the store or has another size, which a listing shows."""


class _Index(Struct, frozen=True):
    url: str
    #: Number of objects in the store when it was last listed as a whole.
    objects: int = 0
    #: Version of the object, size and modification time of each copy.
    files: dict[str, tuple[str, int, int]] = {}


class Copies:
    """The files below `root` that are copies of objects in `store`."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store, self.root = store, root
        #: Keys of manifests and pointers that were written here and are not in the store.
        self.unpublished: set[str] = set()
        self.objects = 0
        self._load()

    def fetch(self, wanted: Mapping[str, Stored | None], files: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        """Download these objects. Raises `NotAsRecorded` if one of `files` has another size or SHA-256 than recorded.

        Readers check all other objects: a training, for example, can resume without its optimizer's state.
        """

        def fetch_one(key: str) -> Stored | None:
            return self._fetch(key, wanted[key], digests.get(key, ""), files.get(key))

        copied = zip(wanted, self.store.map(fetch_one, wanted), strict=True)
        self.note({key: stored for key, stored in copied if stored})

    def _fetch(self, key: str, stored: Stored | None, digest: str, recorded: Any) -> Stored | None:
        """Download one file if needed. Returns the object if the index does not list the file as its copy yet."""
        file = self.root / key
        if self.is_copy(key, stored):
            return None
        if digest and file.is_file() and sha256_file(file) == digest:
            return stored
        if not digest and self.changed_here(key):
            return None  # a log with lines that the store does not have

        def check(partial: Path) -> None:
            size = partial.stat().st_size
            if recorded and size != recorded["size"]:
                raise FileLost(f"{self.store}/{key}: has {size} bytes, not {recorded['size']} as recorded")
            if recorded and sha256_file(partial) != digest:
                raise NotAsRecorded(
                    f"{self.store}/{key}: damaged, its SHA-256 does not match its manifest; restore it, or set the "
                    "stage aside (luigi --module tasks SetAside) to recreate it"
                )

        try:
            self.get(key, check)
        except FileNotFoundError:
            if not recorded:
                return None
            raise FileLost(f"{self.store}/{key}: is missing; run the same command again to recreate it") from None
        return stored

    def get(self, key: str, check: Callable[[Path], None] = lambda partial: None) -> None:
        """Download an object, unless `check` raises for it. Raises `FileNotFoundError` if it is missing."""
        with self._incoming(key) as partial:
            self.store.get(key, partial)
            check(partial)

    def write(self, key: str, content: bytes) -> None:
        """Write a small local file."""
        with self._incoming(key) as partial, self._writing():
            partial.write_bytes(content)

    @contextlib.contextmanager
    def _incoming(self, key: str) -> Iterator[Path]:
        """Yield a temporary file that then replaces the copy of `key`. All that comes from the store passes here.

        Raises `WorkspaceError` if the key or a local link leads out of the root. Does not fsync: the store has the
        content.
        """
        file = self.root / key
        folder = os.path.join(os.path.realpath(self.root), os.path.dirname(key))
        if not names.is_relative_path(key) or os.path.realpath(file.parent) != os.path.normpath(folder):
            raise WorkspaceError(f"{file}: leads out of {self.root}, refusing to write there; remove it")
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
        """Report errors in this block as those of the local folder, not of the store."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.root)  # `write` does not set it
            instead = "choose another folder for copies ([vgg] cache in luigi.cfg, or XDG_CACHE_HOME)"
            raise from_os_error(error, f"keep a local copy of {self.store}", instead) from error

    def is_copy(self, key: str, stored: Stored | None) -> bool:
        """Whether the local file is known to be a copy of this version of the object."""
        file, entry = self.root / key, self._index.get(key)
        return bool(stored and entry and entry[0] == stored.version and file.is_file() and _state(file) == entry[1:])

    def version(self, key: str) -> str | None:
        """Return the version of the object that the local file was copied from, or None."""
        entry = self._index.get(key)
        return entry[0] if entry else None

    def changed_here(self, key: str) -> bool:
        """Whether a local file was never a copy or has changed since."""
        file, entry = self.root / key, self._index.get(key)
        return file.exists() and (entry is None or _state(file) != entry[1:])

    def note(self, news: Mapping[str, Stored | None], objects: int | None = None) -> None:
        """Record which versions the local files are copies of (None: of none). Safe for concurrent processes."""
        if not news and objects is None:
            return
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = open_regular(self.root / f"{INDEX}.lock", os.O_WRONLY | os.O_CREAT)
        with os.fdopen(descriptor, "wb") as lock:
            with contextlib.suppress(OSError):  # a file system without locks, which `locks.hold` reports
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
