"""A workspace in an object store (see `store`), with copies in a local folder of the same layout.

Small JSON files (manifests, pointers) are mirrored; big files are downloaded and checked when a stage needs them. A
stage works in the local folder as in any workspace, then its files are published. The folder may be deleted while no
command runs.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import AlreadyRunning, ConfigError, PipelineError, WorkspaceError
from pipeline.files import MANIFEST, read_json, sha256_file
from pipeline.storage import locks
from pipeline.storage.copies import Copies
from pipeline.storage.folder import LOCAL, Storage
from pipeline.storage.listing import PAGE, Listing
from pipeline.storage.object_locks import LOCKS, ObjectLock
from pipeline.storage.object_log import publish_log, published_lines
from pipeline.storage.store import Store, Stored

#: Files that are always mirrored, besides the pointers.
SMALL = (MANIFEST, "decision.json", "report.json", "ranking.json")


class ObjectStorage(Storage):
    """The files of a workspace in an object store, with copies in the folder `root`. See `storage_at`."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store, self.root = store, root
        self.copies = Copies(store, root)
        self.listing = Listing(store, self.copies.objects)
        #: The locks that this process holds.
        self._held: list[ObjectLock] = []

    def key(self, path: Path) -> str:
        """Return the key of the object for `path`; "" for the root and for paths outside of it."""
        text, root = str(path), str(self.root)
        return text[len(root) + 1 :] if text.startswith(f"{root}/") else ""

    def shown(self, path: Path) -> str:
        return f"{self.store}/{self.key(path)}".rstrip("/")

    def size(self, path: Path) -> int:
        stored = self.listing.get(self.key(path))
        if stored is None:
            raise FileNotFoundError(f"{self.shown(path)}: not there")
        return stored.size

    def sha256(self, path: Path) -> str:
        return self.store.sha256(self.key(path))

    def exists(self, path: Path) -> bool:
        return self.listing.get(self.key(path)) is not None or bool(self.listing.below(self.key(path)))

    def names(self, folder: Path) -> list[str]:
        return sorted(self.listing.folder(self.key(folder)))

    def files(self, folder: Path) -> dict[str, int]:
        top = self.key(folder)
        return {key[len(top) :].lstrip("/"): stored.size for key, stored in self.listing.below(top).items()}

    def is_unpublished(self, path: Path) -> bool:
        return self.key(path) in self.copies.unpublished

    def refresh(self, folders: Iterable[Path], inside: Sequence[str] = ("",), since: float = 0.0) -> bool:
        keys = list(dict.fromkeys(map(self.key, folders)))
        renewed = self._list(keys, since)
        self._sync(keys, inside)
        return renewed

    def refresh_matching(self, pattern: str, inside: Sequence[str] = ("",)) -> None:
        self._list([pattern.partition("/")[0]])
        folders = self.listing.folders(depth=pattern.count("/") + 1)
        self._sync(sorted(fnmatch.filter(folders, pattern)), inside)

    def _list(self, keys: Sequence[str], since: float = 0.0) -> bool:
        renewed = self.listing.refresh(keys, since)
        if self.listing.objects // PAGE != self.copies.objects // PAGE:
            self.copies.note({}, objects=self.listing.objects)
        return renewed

    def _sync(self, keys: Sequence[str], inside: Sequence[str]) -> None:
        """Mirror the small files of folders as listed, and find those that are not published."""
        folders = {f"{key}/{name}".strip("/") for key in keys for name in inside} - self.listing.synced - {""}
        folders = {folder for folder in folders if not self._is_busy(folder)}
        wanted: dict[str, Stored] = {}
        for folder in folders:
            wanted |= self._outdated(folder)
        contents = self.store.read_many(self.store.only_small(wanted))
        for key, content in contents.items():
            file = self.root / key
            if not (file.is_file() and file.read_bytes() == content):
                self.copies.write(key, content)
            self.copies.unpublished.discard(key)
        self.copies.note({key: wanted[key] for key in contents})
        self.listing.synced |= folders

    def _is_busy(self, folder: str) -> bool:
        """Whether another local process is working in a run's folder, whose files must not change until it is done."""
        parts = folder.split("/")
        if parts[0] != "runs" or len(parts) != 4:
            return False
        other = locks.holder(self.root / LOCKS / f"{'.'.join(parts[1:])}.lock")
        return other is not None and other.pid != os.getpid()

    def _outdated(self, folder: str) -> dict[str, Stored]:
        """Return the small files of a folder that must be read from the store."""
        stored_names = self.listing.folder(folder).keys()
        names = stored_names | {path.name for path in (self.root / folder).glob("*.json")}
        wanted = {}
        for key in (f"{folder}/{name}" for name in names if _is_small(folder, name)):
            file, stored = self.root / key, self.listing.get(key)
            changed_here = self.copies.changed_here(key)
            changed_there = (stored.version if stored else None) != self.copies.version(key)
            self.copies.unpublished.discard(key)
            if stored is None:
                if changed_here:
                    self.copies.unpublished.add(key)
                else:  # deleted by another host
                    file.unlink(missing_ok=True)
            elif changed_there or read_json(file) is None:
                wanted[key] = stored  # if both changed, the store wins: others may have built on it
            elif changed_here and (stored.size != file.stat().st_size or self.store.read(key) != file.read_bytes()):
                self.copies.unpublished.add(key)
        return wanted

    def fetch(
        self, folder: Path, files: Mapping[str, Any], digests: Mapping[str, str], everything: bool = False
    ) -> None:
        top = self.key(folder)
        keys = dict.fromkeys([*(f"{top}/{name}" for name in files), *(self.listing.below(top) if everything else ())])
        keys.pop(f"{top}/{MANIFEST}", None)
        self.copies.fetch(
            {key: self.listing.get(key) for key in keys},
            {f"{top}/{name}": recorded for name, recorded in files.items()},
            {f"{top}/{name}": digest for name, digest in digests.items()},
        )

    def fetch_log(self, file: Path) -> None:
        """Fetch a log to append to, unless the local one has lines of its own."""
        if stored := self.listing.get(self.key(file)):
            self.copies.fetch({self.key(file): stored}, {}, {})

    # The manifest is written last and deleted first, so that no host mistakes a part for the whole.

    def publish(self, folder: Path, files: Mapping[str, Any], only: Mapping[str, str] | None = None) -> None:
        """With `only`, publish just the files that have these SHA-256: an earlier command made the folder, so the rest
        may be older than what is in the store. After an error, the next command retries.
        """
        self._check_locks()
        top, last = self.key(folder), self.key(folder / MANIFEST)
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
        local = {self.key(path): path for path in paths}
        local.pop(last, None)
        if only is not None:
            local = {key: path for key, path in local.items() if sha256_file(path) == only.get(key[len(top) + 1 :])}
        new = [key for key in local if not self.copies.is_copy(key, self.listing.get(key))]
        if not new and self.copies.is_copy(last, self.listing.get(last)):
            return
        self.copies.unpublished.add(last)
        if self.listing.get(last):
            self.store.delete([last])
        self.store.map(lambda key: self.store.put(local[key], key), new)
        self.listing.replace([top], self.store.find(top))
        if only is None:
            self._delete_replaced(top)
        self.listing.synced.add(top)
        self._check_sizes(top, files)
        self._check_locks()
        self._write(last, folder / MANIFEST)
        self.copies.note({key: stored for key in [*local, last] if (stored := self.listing.get(key))})

    def publish_file(self, path: Path) -> None:
        self._check_locks()
        key = self.key(path)
        self.copies.unpublished.add(key)
        self._write(key, path)
        if stored := self.listing.get(key):
            self.copies.note({key: stored})

    def move(self, folder: Path, target: Path) -> None:
        self._check_locks()
        start = self.key(folder)
        targets = {key: self.key(target) + key[len(start) :] for key in self._keys(start)}
        for manifests in (False, True):
            part = [key for key in targets if _is_manifest(key) is manifests]
            self.store.map(lambda key: self.store.copy(key, targets[key]), part)
        for key, copied in targets.items():
            self.listing.note(copied, self.listing.get(key))
        self.delete(folder)

    def delete(self, folder: Path) -> None:
        top = self.key(folder)
        keys = self._keys(top) or [top]
        for manifests in (True, False):
            self.store.delete(key for key in keys if _is_manifest(key) is manifests)
        self.listing.replace([top], {})
        self.listing.note(top, None)
        folder.unlink() if folder.is_file() else shutil.rmtree(folder, ignore_errors=True)
        self.copies.note(dict.fromkeys(keys))

    def serve(self, model: Path, about: bytes, version: Path, stable: Path) -> None:
        """Copy a model to its version, then to its stable key. Keeps the last of the former versions."""
        self._check_locks()
        source, top, new = (self.key(path) for path in (model, stable, version))
        recorded = read_json(stable / MANIFEST)
        former = str(recorded.get("model")) if isinstance(recorded, dict) else ""
        for folder in (new, top):
            self.store.copy(source, f"{folder}/{model.name}")
            self.store.write(f"{folder}/{MANIFEST}", about)
        parent = top.rpartition("/")[0]
        kept = (new, f"{parent}/{former[3:].partition('/')[0]}")
        stored = self.store.find(parent)
        self.store.delete(key for key in stored if key.startswith(f"{top}@") and key.rpartition("/")[0] not in kept)
        self.listing.replace([parent], self.store.find(parent))

    def _keys(self, top: str) -> list[str]:
        """Return the keys of all objects below `top`, or `top` itself if it is an object."""
        return list(self.listing.below(top)) or ([top] if self.listing.get(top) else [])

    def _write(self, key: str, file: Path) -> None:
        self.store.write(key, file.read_bytes())
        if stored := self.store.info(key):
            self.listing.note(key, stored)
        self.copies.unpublished.discard(key)

    def _delete_replaced(self, top: str) -> None:
        """Delete the objects whose local copies the stage has removed."""
        keys = [key for key in self.listing.below(top) if self.copies.version(key) is not None]
        gone = [key for key in keys if not (self.root / key).exists()]
        self.store.delete(gone)
        for key in gone:
            self.listing.note(key, None)
        self.copies.note(dict.fromkeys(gone))

    def _check_sizes(self, top: str, files: Mapping[str, Any]) -> None:
        for name, recorded in files.items():
            stored = self.listing.get(f"{top}/{name}")
            if stored is None or stored.size != recorded["size"]:
                found = f"{stored.size} bytes" if stored else "nothing"
                raise WorkspaceError(
                    f"{self.store}/{top}/{name}: {found} there after the upload, expected {recorded['size']} bytes"
                )

    def _lock(self, name: str) -> ObjectLock:
        return ObjectLock(self.store, f"{LOCKS}/{name}.lock")

    @contextlib.contextmanager
    def hold(self, name: str, what: str, wait: bool, on_wait: locks.OnWait) -> Iterator[None]:
        with self._lock(name).held(what, wait, on_wait) as lock:
            self._held.append(lock)
            try:
                yield
            finally:
                self._held.remove(lock)

    def holder(self, name: str) -> locks.Holder | None:
        self._list([LOCKS])
        return self._lock(name).record() if f"{name}.lock" in self.listing.folder(LOCKS) else None

    @property
    def lock_lost(self) -> bool:
        return any(lock.lost for lock in self._held)

    def _check_locks(self) -> None:
        """Ask the store about this process's locks. Raises `AlreadyRunning` if one was taken over."""
        for lock in self._held:
            if not lock.still_ours():
                raise AlreadyRunning(
                    f"{self.store}: {lock.key} was taken over by another host while this one could not be reached; "
                    "nothing was published"
                )

    def read_log(self, file: Path) -> list[str]:
        lines = dict.fromkeys([*LOCAL.read_log(file), *published_lines(self.store)])
        return sorted(lines, key=lambda line: line[: len('{"time": "2026-11-26T15:00:00Z"')])

    def publish_log(self, file: Path, progress: Path, lock: Path) -> None:
        with contextlib.suppress(OSError, PipelineError), locks.hold(lock, "the event log", wait=True):
            publish_log(self.store, file, progress)


def _is_manifest(key: str) -> bool:
    return key.endswith(f"/{MANIFEST}")


def _is_small(folder: str, name: str) -> bool:
    pointers = folder == "datasets/sources" or folder.split("/")[0] == "current"
    return name in SMALL or (pointers and name.endswith(".json"))


_storages: dict[tuple[str, Path], ObjectStorage] = {}


def storage_at(url: str, cache: Path, retry_timeout: float = 60.0, stale_seconds: float = 120.0) -> ObjectStorage:
    """Return this process's storage for an address from `check_url`, with copies in a folder below `cache`."""
    scheme, _, rest = url.partition("://")
    name = f"{scheme}-{rest.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    root = (cache / name).absolute()
    if (url, root) not in _storages:
        _storages[url, root] = ObjectStorage(Store(url, retry_timeout, stale_seconds), root)
    return _storages[url, root]


def storage_of(path: Path) -> Storage:
    """Return this process's storage that a path belongs to."""
    return next((storage for storage in _storages.values() if storage.root in (path, *path.parents)), LOCAL)


def default_cache() -> Path:
    """Return the default folder for copies. Raises `ConfigError` if the user has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise ConfigError("this user has no home folder for copies of the store: set [vgg] cache or XDG_CACHE_HOME")
    return Path(base) / "luigi-vgg"
