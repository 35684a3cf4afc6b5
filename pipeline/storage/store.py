"""Objects of a workspace that is no folder: `s3://bucket/prefix`, or whatever else fsspec reaches.

One `Store` is one address; its keys are relative to it. A request that fails is retried with growing pauses until
`retry_timeout` is over; then one `WorkspaceError` says what could not be done. fsspec and its back-end are imported
when the first request is made: a workspace in a folder never needs them. Credentials come from the places where the
back-end itself looks for them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import random
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline import names
from pipeline.address import shown
from pipeline.errors import ConfigError, WorkspaceError, from_os_error
from pipeline.files import open_regular

T = TypeVar("T")

log = logging.getLogger("vgg")

#: Seconds between two tries: each pause is twice the one before, up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0

#: Seconds after which several that wrote the same object without a condition see which of them was the last.
SETTLE_SECONDS = 1.0

#: What the disk here answers when a download does not fit on it.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

#: Requests at a time where a back-end does not bundle them itself.
THREADS = 8

#: What a back-end may call what tells one content of an object from another.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created")

#: Schemes whose back-ends list by any prefix. Others may too; these were tested.
_LISTS_PREFIXES = ("s3", "s3a")

#: Errors (by name: their libraries are not imported here) that no second try can mend.
_HOPELESS = {
    "NoCredentialsError": "no credentials were found; set them up where the store's own tools look for them",
    "PartialCredentialsError": "the credentials are incomplete",
    "ProfileNotFound": "the credentials' profile does not exist",
    "TokenRetrievalError": "the credentials have expired; log in again",
    "UnauthorizedSSOTokenError": "the credentials have expired; log in again",
}

#: Which extra brings the back-end of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "sftp": "sftp"}


@dataclass(frozen=True)
class Stored:
    """An object as a listing shows it. `version` changes whenever its content does."""

    size: int
    version: str


def is_url(address: str) -> bool:
    """True for the address of a store, False for a folder's path."""
    return "://" in address


def check_url(address: str) -> str:
    """The address of a store in the one form that it is known by; raises `ConfigError` for one that cannot work."""
    scheme, _, rest = address.partition("://")
    try:
        parts = urllib.parse.urlsplit(f"x://{rest}")
    except ValueError as error:  # brackets where an IPv6 address would be
        raise ConfigError(f"--workspace {shown(address)}: {error}; expected for example s3://bucket/prefix") from None
    if parts.password is not None or parts.query or "…@" in shown(address):
        raise ConfigError(
            f"--workspace {shown(address)}: an address with a password or a query would end up in logs; give the "
            "credentials where the store's own tools look for them (environment, profile, ~/.ssh)"
        )
    if scheme == "memory":
        raise ConfigError(f"--workspace {address}: memory:// ends with its process; use a folder or an object store")
    if not rest.strip("/"):
        raise ConfigError(f"--workspace {address}: names no bucket or folder; expected for example s3://bucket/prefix")
    address = f"{scheme}://{rest.rstrip('/')}"
    _backend(address)
    return address


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
        #: Objects that the log says are left out.
        self._left_out: set[str] = set()

    def __str__(self) -> str:
        return shown(self.url)

    # --- requests -----------------------------------------------------------------------------------------------

    @property
    def lists_prefixes(self) -> bool:
        """True when `find` takes any prefix, not only that of a folder."""
        return self.url.partition("://")[0] in _LISTS_PREFIXES

    def find(self, prefix: str = "") -> dict[str, Stored]:
        """Every object whose key begins so (`runs/` for those of a folder), by its key, with size and version."""
        folder, _, name = prefix.rpartition("/")

        def ask(fs: Any, base: str) -> dict[str, Stored]:
            fs.invalidate_cache()
            only = {"prefix": name} if name else {}
            try:
                found = fs.find(f"{base}/{folder}".rstrip("/"), detail=True, **only)
            except FileNotFoundError:
                return {}
            cut = len(base) + 1
            return {path[cut:]: _stored(info) for path, info in found.items() if info.get("type") != "directory"}

        listed = self._retry("list", prefix.rstrip("/"), ask)
        return {key: stored for key, stored in listed.items() if self._is_ours(key)}

    def _is_ours(self, key: str) -> bool:
        """False for an object whose name cannot be that of a file below a folder; such are left out of everything."""
        if names.is_relative_path(key):
            return True
        if key and not key.endswith("/") and key not in self._left_out:  # those stand for folders
            self._left_out.add(key)
            log.warning("%s: left out an object whose name is no file's: %s; remove it", self, ascii(key))
        return False

    def info(self, key: str) -> Stored | None:
        """Size and version of one object, or None when it is not there."""

        def ask(fs: Any, base: str) -> Stored | None:
            fs.invalidate_cache()
            try:
                return _stored(fs.info(f"{base}/{key}"))
            except FileNotFoundError:
                return None

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

        def ask(fs: Any, base: str) -> bytes | None:
            try:
                return fs.cat_file(f"{base}/{key}")
            except FileNotFoundError:
                return None

        return self._retry("read", key, ask)

    def read_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The contents of small objects, many requests at a time; those that are gone are left out."""
        wanted = list(keys)
        found: dict[str, bytes] = {}
        if len(wanted) > 1:

            def ask(fs: Any, base: str) -> list[Any]:  # not `cat`, which takes brackets in a name for a pattern
                return fs.cat_ranges([f"{base}/{key}" for key in wanted], None, None, on_error="return")

            answers = zip(wanted, self._retry("read", "", ask), strict=True)
            found = {key: content for key, content in answers if isinstance(content, bytes)}
        for key in wanted:
            if key not in found and (content := self.read(key)) is not None:
                found[key] = content
        return found

    def write(self, key: str, content: bytes) -> None:
        """Write a small object, replacing what is there."""
        self._retry("write", key, lambda fs, base: fs.pipe_file(_made(fs, f"{base}/{key}"), content))

    def create(self, key: str, content: bytes) -> bool:
        """Write a small object unless there is one; gives whether the one that is there now is this one.

        One of several writers succeeds: object stores have conditional writes for that, file servers open a file that
        must not be there. Where a back-end has neither, the last writer does; one that is slower than SETTLE_SECONDS
        can then take it from another that already believes that it succeeded, and which has to look again.
        """

        def ask(fs: Any, base: str) -> bool:
            """False when it may have been written over what another one wrote."""
            target = _made(fs, f"{base}/{key}")
            try:
                if _is_shared(fs):
                    fs.pipe_file(target, content, mode="create")
                else:
                    _create(fs, target, content)
            except FileExistsError:
                return True
            except (NotImplementedError, ValueError):
                fs.pipe_file(target, content)
                return False
            except OSError as error:
                if not _is_conflict(error):
                    raise
            return True

        if self.read(key) is None and not self._retry("write", key, ask):
            time.sleep(SETTLE_SECONDS * random.uniform(1, 1.5))
        return self.read(key) == content

    def put(self, file: Path, key: str) -> None:
        """Upload a file. Raises `OSError` when it cannot be read."""
        os.close(open_regular(file))
        self._retry("upload", key, lambda fs, base: fs.put_file(str(file), _made(fs, f"{base}/{key}")))

    def get(self, key: str, file: Path) -> None:
        """Download an object into `file`. Raises `FileNotFoundError` when it is not there."""
        self._retry("download", key, lambda fs, base: _download(fs, f"{base}/{key}", str(file)))

    def copy(self, key: str, target: str) -> None:
        """Copy an object within the store."""

        def ask(fs: Any, base: str) -> None:
            old, new = f"{base}/{key}", _made(fs, f"{base}/{target}")
            try:
                fs.cp_file(old, new)
            except NotImplementedError:  # SFTP has no such request
                with tempfile.TemporaryDirectory() as folder:
                    _download(fs, old, f"{folder}/copy")
                    fs.put_file(f"{folder}/copy", new)

        self._retry("copy", key, ask)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""

        def ask(fs: Any, base: str, key: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(f"{base}/{key}")

        self.each(lambda key: self._retry("delete", key, lambda fs, base: ask(fs, base, key)), keys)

    def sha256(self, key: str) -> str:
        """SHA-256 of an object's content, which is not kept."""

        def ask(fs: Any, base: str) -> str:
            digest = hashlib.sha256()
            with fs.open(f"{base}/{key}", "rb", block_size=1 << 23) as file:
                while block := file.read(1 << 23):
                    digest.update(block)
            return digest.hexdigest()

        return self._retry("read", key, ask)

    def each(self, work: Callable[[str], T], keys: Iterable[str]) -> list[T]:
        """Do `work` for each key, several at a time if it can be; raises what the first that failed raised."""
        if not _is_shared(self._open()[0]):
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
            opened = self._own.opened = (os.getpid(), *_connect(self.url))
            if _is_shared(opened[1]):
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
                if doing in ("download", "copy"):
                    raise
                why = "there is no such bucket or folder; create it, or choose another --workspace"
                raise WorkspaceError(f"{where}: cannot {doing}: {why}") from error
            except Exception as error:  # every back-end has errors of its own
                hopeless = _hopeless(error)
                if hopeless or time.monotonic() + pause > until:
                    raise WorkspaceError(f"{where}: cannot {doing}: {hopeless or _said(error)}") from error
                log.debug("%s: %s failed (%s), trying again", where, doing, _said(error))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _backend(url: str) -> Any:
    """fsspec's class for the scheme of an address. Raises `ConfigError` when there is none, or it is not installed."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        advice = f"pip install 'luigi-vgg[{extra}]'" if extra else "install the fsspec back-end for it"
        missing = f"needs a package that is not installed ({error}); {advice}"
        raise ConfigError(f"--workspace {shown(url)}: {missing}") from None
    except ValueError:
        expected = "expected a folder, or an address such as s3://bucket/prefix"
        raise ConfigError(f"--workspace {shown(url)}: unknown scheme {scheme}://, {expected}") from None


def _connect(url: str) -> tuple[Any, str]:
    import fsspec

    scheme, backend = url.partition("://")[0], _backend(url)
    try:
        options: dict[str, Any] = backend._get_kwargs_from_urls(url)
        if scheme in ("s3", "s3a"):
            # The pauses between tries are ours; what a back-end adds to them would multiply.
            own = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})  # the user's, from fsspec's own files
            options |= {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}
        # Not `url_to_fs`, which takes two colons in a name for two back-ends.
        fs, base = fsspec.filesystem(scheme, **options), str(backend._strip_protocol(url))
    except ValueError as error:  # an option that is missing or wrong
        raise ConfigError(f"--workspace {shown(url)}: {error}") from None
    if isinstance(getattr(fs, "retries", None), int):
        fs.retries = 1
    return fs, base.rstrip("/")


def _is_shared(fs: Any) -> bool:
    """True for the back-end of an object store, False for that of a file server."""
    return bool(getattr(fs, "async_impl", False))


def _download(fs: Any, path: str, file: str) -> None:
    """Download a file; raises `WorkspaceError` at once when the disk here is full, which is no fault of the store."""
    try:
        fs.get_file(path, file)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        error.filename = file
        raise from_os_error(error, f"keep a copy of {path} here") from error


def _create(fs: Any, path: str, content: bytes) -> None:
    """Write a file on a file server; raises `FileExistsError` when there is one."""
    # paramiko wants both letters; those that refuse them have `x` alone.
    mode = "wxb" if "sftp" in fs.protocol else "xb"
    try:
        with fs.open(path, mode) as file:
            file.write(content)
    except OSError as error:
        if fs.exists(path):  # SFTP has no error of its own for it
            raise FileExistsError(path) from error
        raise


def _made(fs: Any, path: str) -> str:
    """The path, its folder being there: object stores have none, file servers want one."""
    if not _is_shared(fs):
        fs.makedirs(fs._parent(path), exist_ok=True)
    return path


def _stored(info: dict[str, Any]) -> Stored:
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    return Stored(int(info.get("size") or 0), str(version).strip('"'))


def _is_conflict(error: OSError) -> bool:
    """True when a conditional write was refused because of another writer."""
    return any(word in str(error) for word in ("PreconditionFailed", "ConditionalRequestConflict", "pre-condition"))


def _hopeless(error: Exception) -> str:
    name = type(error).__name__
    if isinstance(error, PermissionError):
        return f"permission denied ({_said(error)}); check the credentials and the rights on the bucket"
    return _HOPELESS.get(name, "")


def _said(error: Exception) -> str:
    """What an error says, in one short line."""
    text = " ".join(str(error).split()) or "no details"
    return f"{type(error).__name__}: {text[:200]}"
