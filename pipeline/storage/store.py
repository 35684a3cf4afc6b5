"""Object stores: `s3://bucket/prefix`, or anything else that fsspec supports.

A `Store` stands for one address; its keys are relative to it. Failed requests are retried with growing pauses for
`retry_timeout` seconds, then raise a `WorkspaceError`. fsspec's back-ends each retry in their own way, or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline import names
from pipeline.address import shown
from pipeline.errors import ConfigError, WorkspaceError
from pipeline.files import READ_LIMIT, human_size, open_regular, sha256_of
from pipeline.storage import backend

T = TypeVar("T")

log = logging.getLogger("vgg")

#: Seconds between retries: each pause is twice the previous one, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0

#: Seconds that writers of the same object wait to see who wrote last, if the backend has no conditional writes.
SETTLE_SECONDS = 1.0

#: Concurrent requests where a backend does not batch them itself.
THREADS = 8

#: Names that backends use for the version of an object.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class Stored:
    """An object as listed. `version` changes whenever its content does."""

    size: int
    version: str


class Store:
    """The objects below one address.

    `retry_timeout`: seconds for which to retry a failing request. `stale_seconds`: seconds without a heartbeat after
    which a lock is stale.
    """

    def __init__(self, url: str, retry_timeout: float = 60.0, stale_seconds: float = 120.0) -> None:
        self.url, self.retry_timeout, self.stale_seconds = url, retry_timeout, stale_seconds
        #: The connection that all threads of this process share, and those of single threads.
        self._shared: tuple[int, Any, str] | None = None
        self._own = threading.local()
        #: Warns only once about each skipped object.
        self._warn = functools.cache(log.warning)

    def __str__(self) -> str:
        return shown(self.url)

    def find(self, folder: str = "") -> dict[str, Stored]:
        """List every object below a folder ("" is everything), by key."""

        def request(fs: Any, base: str) -> dict[str, Stored]:
            fs.invalidate_cache()
            try:
                found = fs.find(f"{base}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            cut = len(base) + 1
            return {path[cut:]: _stored(info) for path, info in found.items() if info.get("type") != "directory"}

        listed = self._retry("list", folder, request)
        return {key: stored for key, stored in listed.items() if self._is_valid(key)}

    def _is_valid(self, key: str) -> bool:
        """Whether an object's name can be that of a file below a folder. All others are ignored."""
        if names.is_relative_path(key):
            return True
        if key and not key.endswith("/"):  # those stand for folders
            self._warn(f"{self}: skipped an object whose name is not a valid path: {key!a}; remove it")
        return False

    def info(self, key: str) -> Stored | None:
        """Return size and version of an object, or None if it is missing."""

        def request(fs: Any, base: str) -> Stored | None:
            fs.invalidate_cache()
            info = backend.none_if_missing(fs.info, f"{base}/{key}")
            return None if info is None else _stored(info)

        return self._retry("look up", key, request)

    def age(self, key: str, probe: str) -> float | None:
        """Return the seconds since `key` was written, by the store's clock; None if the store does not record it.

        Writes and deletes the key `probe` to get the store's time, as hosts' clocks may be wrong.
        """

        def request(fs: Any, base: str) -> float | None:
            fs.pipe_file(f"{base}/{probe}", b"")
            try:
                fs.invalidate_cache()
                return (fs.modified(f"{base}/{probe}") - fs.modified(f"{base}/{key}")).total_seconds()
            except (NotImplementedError, KeyError, FileNotFoundError):
                return None
            finally:
                with contextlib.suppress(Exception):
                    fs.rm_file(f"{base}/{probe}")

        return self._retry("look up", key, request)

    def read(self, key: str) -> bytes | None:
        """Return the content of a small object, or None if it is missing."""
        return self._retry("read", key, lambda fs, base: backend.none_if_missing(fs.cat_file, f"{base}/{key}"))

    def read_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of small objects, requested concurrently, without those that are missing."""
        wanted = list(keys)

        def request(fs: Any, base: str) -> list[Any]:  # not `cat`, which reads brackets in a name as a pattern
            return fs.cat_ranges([f"{base}/{key}" for key in wanted], None, None, on_error="return")

        answers = zip(wanted, self._retry("read", "", request), strict=True)
        contents = ((key, answer if isinstance(answer, bytes) else self.read(key)) for key, answer in answers)
        return {key: content for key, content in contents if content is not None}

    def only_small(self, objects: Mapping[str, Stored]) -> dict[str, Stored]:
        """Return the objects of at most `READ_LIMIT` bytes, with a warning about the others."""
        for key, stored in objects.items():
            if stored.size > READ_LIMIT:
                self._warn(f"{self}/{key}: skipped, {human_size(stored.size)} is far too large; remove it")
        return {key: stored for key, stored in objects.items() if stored.size <= READ_LIMIT}

    def write(self, key: str, content: bytes) -> None:
        """Write a small object, replacing any that exists."""
        self._retry("write", key, lambda fs, base: fs.pipe_file(backend.with_parent(fs, f"{base}/{key}"), content))

    def create(self, key: str, content: bytes) -> bool:
        """Write a small object unless it exists. Returns whether the stored content is `content`.

        Of several writers one succeeds: object stores have conditional writes, file servers exclusive creation. If a
        backend has neither, the last writer wins; one slower than SETTLE_SECONDS can then overwrite another that
        already believes that it succeeded, so callers must check again.
        """

        def request(fs: Any, base: str) -> bool:
            """Return False if the write may have replaced another writer's."""
            target = backend.with_parent(fs, f"{base}/{key}")
            try:
                backend.create(fs, target, content)
            except FileExistsError:
                return True
            except (NotImplementedError, ValueError):
                fs.pipe_file(target, content)
                return False
            return True

        if self.read(key) is None and not self._retry("write", key, request):
            time.sleep(SETTLE_SECONDS * random.uniform(1, 1.5))
        return self.read(key) == content

    def put(self, file: Path, key: str) -> None:
        """Upload a file. Raises `OSError` if it cannot be read."""
        os.close(open_regular(file))
        self._retry("upload", key, lambda fs, base: fs.put_file(str(file), backend.with_parent(fs, f"{base}/{key}")))

    def get(self, key: str, file: Path) -> None:
        """Download an object into `file`. Raises `FileNotFoundError` if it is missing."""
        self._retry("download", key, lambda fs, base: backend.download(fs, f"{base}/{key}", str(file)))

    def copy(self, key: str, target: str) -> None:
        """Copy an object within the store."""
        self._retry("copy", key, lambda fs, base: backend.copy(fs, f"{base}/{key}", f"{base}/{target}"))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, if they exist."""

        def delete_one(key: str) -> None:
            self._retry("delete", key, lambda fs, base: backend.none_if_missing(fs.rm_file, f"{base}/{key}"))

        self.map(delete_one, keys)

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of an object without keeping a copy. Raises `FileNotFoundError` if it is missing."""

        def request(fs: Any, base: str) -> str:
            with fs.open(f"{base}/{key}", "rb", block_size=1 << 23) as file:
                return sha256_of(file)

        return self._retry("read", key, request)

    def map(self, work: Callable[[str], T], keys: Iterable[str]) -> list[T]:
        """Call `work` for each key, concurrently if the backend can. Raises the first error."""
        if not backend.is_object_store(self._connection()[0]):
            return [work(key) for key in keys]
        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(work, keys))

    def _connection(self) -> tuple[Any, str]:
        """Return the file system, and the address in the form that it uses. Connects anew after a fork.

        Back-ends of object stores are thread-safe. Those of file servers are not (paramiko's threads take each other's
        responses), so each thread has its own connection: a lock is renewed during an upload.
        """
        opened = getattr(self._own, "opened", None) or self._shared
        if opened is None or opened[0] != os.getpid():
            opened = self._own.opened = (os.getpid(), *backend.connect(self.url))
            if backend.is_object_store(opened[1]):
                self._shared = opened
        return opened[1], opened[2]

    def _retry(self, doing: str, key: str, request: Callable[[Any, str], T]) -> T:
        until, pause = time.monotonic() + self.retry_timeout, FIRST_PAUSE
        where = f"{self}/{key}".rstrip("/")
        while True:
            try:
                return request(*self._connection())
            except (FileExistsError, WorkspaceError, ConfigError):
                raise
            except FileNotFoundError as error:
                if doing in ("download", "copy", "read"):
                    raise
                why = "there is no such bucket or folder; create it, or choose another --workspace"
                raise WorkspaceError(f"{where}: cannot {doing}: {why}") from error
            except Exception as error:  # every backend has errors of its own
                permanent = backend.permanent_failure(error)
                if permanent or time.monotonic() + pause > until:
                    raise WorkspaceError(f"{where}: cannot {doing}: {permanent or backend.describe(error)}") from error
                log.debug("%s: %s failed (%s), retrying", where, doing, backend.describe(error))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _stored(info: dict[str, Any]) -> Stored:
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    return Stored(int(info.get("size") or 0), str(version).strip('"'))
