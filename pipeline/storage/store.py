"""Objects of a workspace that is no folder: `s3://bucket/prefix`, or whatever else fsspec reaches.

One `Store` is one address; its keys are relative to it. A request that fails is retried with growing pauses until
`retry_timeout` is over; then one `WorkspaceError` says what could not be done.
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

#: Seconds between two tries: each pause is twice the one before, up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0

#: Seconds after which several that wrote the same object without a condition see which of them was the last.
SETTLE_SECONDS = 1.0

#: Requests at a time where a back-end does not bundle them itself.
THREADS = 8

#: What a back-end may call what tells one content of an object from another.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class Stored:
    """An object as a listing shows it. `version` changes whenever its content does."""

    size: int
    version: str


class Store:
    """The objects below one address.

    `retry_timeout`: seconds for which a failing request is retried. `stale_seconds`: after how many seconds without a
    heartbeat the holder of a lock counts as dead.
    """

    def __init__(self, url: str, retry_timeout: float = 60.0, stale_seconds: float = 120.0) -> None:
        self.url, self.retry_timeout, self.stale_seconds = url, retry_timeout, stale_seconds
        #: The connection of this process that all its threads share, and those that belong to one thread.
        self._opened: tuple[int, Any, str] | None = None
        self._own = threading.local()
        #: Tells once of an object that is left out.
        self._warn = functools.cache(log.warning)

    def __str__(self) -> str:
        return shown(self.url)

    # --- requests -----------------------------------------------------------------------------------------------

    def find(self, folder: str = "") -> dict[str, Stored]:
        """Every object of a folder ("" is everything) and the folders in it, by its key, with size and version."""

        def ask(fs: Any, base: str) -> dict[str, Stored]:
            fs.invalidate_cache()
            try:
                found = fs.find(f"{base}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            cut = len(base) + 1
            return {path[cut:]: _stored(info) for path, info in found.items() if info.get("type") != "directory"}

        listed = self._retry("list", folder, ask)
        return {key: stored for key, stored in listed.items() if self._is_ours(key)}

    def _is_ours(self, key: str) -> bool:
        """False for an object whose name cannot be that of a file below a folder; such are left out of everything."""
        if names.is_relative_path(key):
            return True
        if key and not key.endswith("/"):  # those stand for folders
            self._warn(f"{self}: left out an object whose name is no file's: {key!a}; remove it")
        return False

    def info(self, key: str) -> Stored | None:
        """Size and version of one object, or None when it is not there."""

        def ask(fs: Any, base: str) -> Stored | None:
            fs.invalidate_cache()
            info = backend.if_there(fs.info, f"{base}/{key}")
            return None if info is None else _stored(info)

        return self._retry("look at", key, ask)

    def age(self, key: str, beside: str) -> float | None:
        """Seconds by the store's own clock since `key` was written; None where that cannot be told.

        `beside` is a key that is written and removed to ask for the store's time: hosts' clocks may be wrong.
        """

        def ask(fs: Any, base: str) -> float | None:
            fs.pipe_file(f"{base}/{beside}", b"")
            try:
                fs.invalidate_cache()
                return (fs.modified(f"{base}/{beside}") - fs.modified(f"{base}/{key}")).total_seconds()
            except (NotImplementedError, KeyError, FileNotFoundError):
                return None
            finally:
                with contextlib.suppress(Exception):
                    fs.rm_file(f"{base}/{beside}")

        return self._retry("look at", key, ask)

    def read(self, key: str) -> bytes | None:
        """The content of a small object, or None when it is not there."""
        return self._retry("read", key, lambda fs, base: backend.if_there(fs.cat_file, f"{base}/{key}"))

    def read_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The contents of small objects, many requests at a time; those that are gone are left out."""
        wanted = list(keys)

        def ask(fs: Any, base: str) -> list[Any]:  # not `cat`, which takes brackets in a name for a pattern
            return fs.cat_ranges([f"{base}/{key}" for key in wanted], None, None, on_error="return")

        answers = zip(wanted, self._retry("read", "", ask), strict=True)
        contents = ((key, found if isinstance(found, bytes) else self.read(key)) for key, found in answers)
        return {key: content for key, content in contents if content is not None}

    def small(self, found: Mapping[str, Stored]) -> dict[str, Stored]:
        """Those of these objects that can be small files; the log names the others."""
        for key, stored in found.items():
            if stored.size > READ_LIMIT:
                self._warn(f"{self}/{key}: left out, as it has {human_size(stored.size)}; remove it")
        return {key: stored for key, stored in found.items() if stored.size <= READ_LIMIT}

    def write(self, key: str, content: bytes) -> None:
        """Write a small object, replacing what is there."""
        self._retry("write", key, lambda fs, base: fs.pipe_file(backend.made(fs, f"{base}/{key}"), content))

    def create(self, key: str, content: bytes) -> bool:
        """Write a small object unless there is one; gives whether the one that is there now is this one.

        One of several writers succeeds: object stores have conditional writes for that, file servers open a file that
        must not be there. Where a back-end has neither, the last writer does; one that is slower than SETTLE_SECONDS
        can then take it from another that already believes that it succeeded, and which has to look again.
        """

        def ask(fs: Any, base: str) -> bool:
            """False when it may have been written over what another one wrote."""
            target = backend.made(fs, f"{base}/{key}")
            try:
                backend.create(fs, target, content)
            except FileExistsError:
                return True
            except (NotImplementedError, ValueError):
                fs.pipe_file(target, content)
                return False
            return True

        if self.read(key) is None and not self._retry("write", key, ask):
            time.sleep(SETTLE_SECONDS * random.uniform(1, 1.5))
        return self.read(key) == content

    def put(self, file: Path, key: str) -> None:
        """Upload a file. Raises `OSError` when it cannot be read."""
        os.close(open_regular(file))
        self._retry("upload", key, lambda fs, base: fs.put_file(str(file), backend.made(fs, f"{base}/{key}")))

    def get(self, key: str, file: Path) -> None:
        """Download an object into `file`. Raises `FileNotFoundError` when it is not there."""
        self._retry("download", key, lambda fs, base: backend.download(fs, f"{base}/{key}", str(file)))

    def copy(self, key: str, target: str) -> None:
        """Copy an object within the store."""
        self._retry("copy", key, lambda fs, base: backend.copy(fs, f"{base}/{key}", f"{base}/{target}"))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""

        def one(key: str) -> None:
            self._retry("delete", key, lambda fs, base: backend.if_there(fs.rm_file, f"{base}/{key}"))

        self.each(one, keys)

    def sha256(self, key: str) -> str:
        """SHA-256 of an object's content, which is not kept. Raises `FileNotFoundError` when it is not there."""

        def ask(fs: Any, base: str) -> str:
            with fs.open(f"{base}/{key}", "rb", block_size=1 << 23) as file:
                return sha256_of(file)

        return self._retry("read", key, ask)

    def each(self, work: Callable[[str], T], keys: Iterable[str]) -> list[T]:
        """Do `work` for each key, several at a time if it can be; raises what the first that failed raised."""
        if not backend.is_shared(self._open()[0]):
            return [work(key) for key in keys]
        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(work, keys))

    # --- how they are made --------------------------------------------------------------------------------------

    def _open(self) -> tuple[Any, str]:
        """The back-end and the address as it writes it: a new one in each process, none survives a fork.

        Object stores' back-ends take requests from all threads. Those of file servers are not made for it (paramiko's
        threads take each other's answers), so each thread connects by itself: a lock is renewed during an upload.
        """
        opened = getattr(self._own, "opened", None) or self._opened
        if opened is None or opened[0] != os.getpid():
            opened = self._own.opened = (os.getpid(), *backend.connect(self.url))
            if backend.is_shared(opened[1]):
                self._opened = opened
        return opened[1], opened[2]

    def _retry(self, doing: str, key: str, ask: Callable[[Any, str], T]) -> T:
        until, pause = time.monotonic() + self.retry_timeout, FIRST_PAUSE
        where = f"{self}/{key}".rstrip("/")
        while True:
            try:
                return ask(*self._open())
            except (FileExistsError, WorkspaceError, ConfigError):
                raise
            except FileNotFoundError as error:
                if doing in ("download", "copy", "read"):
                    raise
                why = "there is no such bucket or folder; create it, or choose another --workspace"
                raise WorkspaceError(f"{where}: cannot {doing}: {why}") from error
            except Exception as error:  # every back-end has errors of its own
                hopeless = backend.hopeless(error)
                if hopeless or time.monotonic() + pause > until:
                    raise WorkspaceError(f"{where}: cannot {doing}: {hopeless or backend.said(error)}") from error
                log.debug("%s: %s failed (%s), trying again", where, doing, backend.said(error))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _stored(info: dict[str, Any]) -> Stored:
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    return Stored(int(info.get("size") or 0), str(version).strip('"'))
