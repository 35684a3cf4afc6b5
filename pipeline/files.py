"""Small file operations that everything else trusts: atomic writes, digests, JSON.

Reads and writes only the paths it is given. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it over `path`.

    A reader sees the old content or the whole new content, never a part; after a failure (an exception
    in the block) the temporary file is removed and `path` is as it was. Raises `OSError` that names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # `write` and `fsync` leave it out
        raise
    sync_directory(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path` so that no reader ever sees half of it."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (`ValueError`)."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


#: What `read_json` has read so far in this block of `each_read_once`; None outside of one.
_read: contextvars.ContextVar[dict[Path, Any] | None] = contextvars.ContextVar("read", default=None)


def read_json(path: Path) -> Any | None:
    """The JSON value in `path`, or None when the file is missing, unreadable or not JSON."""
    known = _read.get()
    if known is not None and path in known:
        return known[path]
    value = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
    if known is not None:
        known[path] = value
    return value


@contextlib.contextmanager
def each_read_once() -> Iterator[None]:
    """In this block and thread, read every JSON file once: for one question about many runs. Change no value."""
    token = _read.set({})
    try:
        yield
    finally:
        _read.reset(token)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content as 64 hex digits."""
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()  # Python 3.10
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Make renames inside the directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_debris(folder: Path, name: str) -> None:
    """Remove what killed writers of `folder/name` left behind (see `atomic_writer`)."""
    for path in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def human_size(size: float) -> str:
    """A number of bytes for people: 512 B, 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _umask() -> int:
    # os.umask can only be read by setting it; /proc tells without a race between threads.
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    return 0o022
