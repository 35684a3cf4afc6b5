"""File operations that everything else builds on: atomic writes, moves, digests, JSON; and the clock."""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import address
from pipeline.errors import ConfigError

#: The file that a stage writes last. Its presence means that the stage finished.
MANIFEST = "manifest.json"

#: Most bytes to read at once: far above any manifest, pointer or log, while a sparse file can claim any size.
READ_LIMIT = 1 << 28

#: Errors of file systems that cannot sync folders (CIFS, FAT, some FUSE ones), or where the user may not list them.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)


def now() -> str:
    """Return the current time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Like `os.open`, for regular files only: never blocks on a pipe, never writes through a link.

    Another user of a shared workspace may have planted either. Raises `OSError`.
    """
    no_link = os.O_NOFOLLOW if flags & (os.O_WRONLY | os.O_RDWR) else 0
    number = errno.EINVAL
    try:
        descriptor = os.open(path, flags | no_link | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        number = error.errno
    raise OSError(number, "it is a link, a pipe or a folder, not a regular file: remove it", str(path))


def expanded(location: str, where: str) -> str:
    """Expand `~` and `$NAME` in a path or URL, as a shell would.

    Raises `ConfigError`, prefixed with `where` (the option or key), if one of them is unknown.
    """
    result = os.path.expanduser(os.path.expandvars(location))
    unknown = re.search(r"\$(?:[A-Za-z_]\w*|\{\w+\})|^~[\w.-]*(?=/|$)", result)
    if unknown and "://" in location:  # the $ may be part of a password
        raise ConfigError(f"{where}: found {address.shown(location)}, but the variable behind its $ is not set")
    if unknown:
        kind = "home folder" if unknown[0].startswith("~") else "environment variable"
        raise ConfigError(f"{where}: found {location!r}, but there is no such {kind} as {unknown[0]}")
    return result


def check_path(path: str | os.PathLike[str], where: str) -> None:
    """Raise `ConfigError`, prefixed with `where`, unless a path's bytes are UTF-8, all that MXNet and JSON support."""
    text = os.fspath(path)
    with contextlib.suppress(UnicodeEncodeError):
        if text.encode() == os.fsencode(text):
            return
    encoding = sys.getfilesystemencoding()
    advice = "give a path whose folders have names in UTF-8"
    if encoding != "utf-8":
        advice = f"Python decodes file names as {encoding} here: unset PYTHONUTF8, or set LC_ALL=C.UTF-8"
    raise ConfigError(f"{where}: found {text!a}, which is not UTF-8; {advice}")


def read_regular(path: Path) -> bytes:
    """Read a regular file. Raises `OSError`, also if it is larger than `READ_LIMIT`."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > READ_LIMIT:
            raise OSError(errno.EFBIG, f"{human_size(size)}, far too large for such a file", str(path))
        return file.read()


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it over `path`.

    Readers see the old content or the whole new content, never a part. If the block raises, the temporary file is
    removed and `path` is unchanged. An `OSError` always names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # `write` and `fsync` do not set it
        raise
    sync_directory(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`. See `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises `ValueError` for NaN and infinity."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


#: What `read_json` has read inside `json_cache`; None outside of it.
_json_cache: contextvars.ContextVar[dict[Path, Any] | None] = contextvars.ContextVar("json_cache", default=None)


def read_json(path: Path) -> Any | None:
    """Read a JSON file. Returns None if it is missing, unreadable, not JSON, or contains lone surrogates."""
    cache = _json_cache.get()
    if cache is not None and path in cache:
        return cache[path]
    value = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = read_regular(path)
        parsed = json.loads(content)
        if b"\\u" in content:  # an escaped lone surrogate cannot be encoded again
            os.fsencode(json.dumps(parsed, ensure_ascii=False))
        value = parsed
    if cache is not None:
        cache[path] = value
    return value


@contextlib.contextmanager
def json_cache() -> Iterator[None]:
    """Make `read_json` read each file once in this block and thread. Callers must not modify the shared values."""
    token = _json_cache.set({})
    try:
        yield
    finally:
        _json_cache.reset(token)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with os.fdopen(open_regular(path), "rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of an open file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Make renames in the directory `path` survive a power cut, if the file system supports it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def move(source: Path, target: Path) -> None:
    """Move a file or folder, replacing any file at `target`. Raises `OSError`.

    Across file systems (`work/` or `trash/` on scratch, say), copies and syncs under a temporary name, renames the
    copy, then removes the source.
    """
    try:
        os.replace(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        _copy(source, partial)
        os.replace(partial, target)
    except BaseException:
        remove(partial)
        raise
    sync_directory(target.parent)
    remove(source)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`, or copy it if the file system has no hard links. Raises `OSError`."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EEXIST):
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink():
        os.symlink(os.readlink(source), target)
    elif source.is_dir():
        target.mkdir()
        for path in source.iterdir():
            _copy(path, target / path.name)
        sync_directory(target)
    else:
        # Not `shutil.copy`: some file systems refuse modes and times, and nothing here needs them.
        with os.fdopen(open_regular(source), "rb") as read, open(target, "xb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_debris(folder: Path, name: str) -> None:
    """Remove the temporary files that killed writers of `folder/name` left behind (see `atomic_writer`)."""
    for path in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def human_size(size: float) -> str:
    """Format a number of bytes: 512 B, 1.5 MB."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
