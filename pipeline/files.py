"""Small file operations that everything else trusts: atomic writes, moves, digests, JSON; and the clock.

Reads and writes only the paths it is given. Imports nothing heavy.
"""

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

#: The file that a stage writes last: where it is, the stage is finished.
MANIFEST = "manifest.json"

#: Most bytes that are read as one piece: no manifest, pointer or log comes near, and a file of holes can have any size.
READ_LIMIT = 1 << 28

#: What file systems answer that do not sync folders (CIFS, FAT, some FUSE ones), or to one who may not list them.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)


def now() -> str:
    """The present time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """As `os.open`, for regular files: never waits for the other end of a pipe, never writes through a link.

    In a workspace that several users share, either may have been put there by another one. Raises `OSError`.
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
    """A path or URL that a person wrote, with `~` and `$NAME` filled in, as a shell would have done.

    Raises `ConfigError`, with `where` naming who wants it, for what cannot be filled in.
    """
    found = os.path.expanduser(os.path.expandvars(location))
    unknown = re.search(r"\$(?:[A-Za-z_]\w*|\{\w+\})|^~[\w.-]*(?=/|$)", found)
    if unknown and "://" in location:  # a password may have the $
        raise ConfigError(f"{where}: found {address.shown(location)}, but the variable behind its $ is not set")
    if unknown:
        what = "home folder" if unknown[0].startswith("~") else "environment variable"
        raise ConfigError(f"{where}: found {location!r}, but there is no such {what} as {unknown[0]}")
    return found


def check_path(path: str | os.PathLike[str], where: str) -> None:
    """Refuse a path that libraries and files would not write as Python does: MXNet and JSON know UTF-8 alone.

    Raises `ConfigError`, with `where` naming who wants it.
    """
    text = os.fspath(path)
    with contextlib.suppress(UnicodeEncodeError):
        if text.encode() == os.fsencode(text):
            return
    encoding = sys.getfilesystemencoding()
    advice = "give a path whose folders have names in UTF-8"
    if encoding != "utf-8":
        advice = f"Python takes names here for {encoding}: unset PYTHONUTF8, or set LC_ALL=C.UTF-8"
    raise ConfigError(f"{where}: found {text!a}, which is not UTF-8; {advice}")


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises `OSError`, also for one larger than `READ_LIMIT`."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > READ_LIMIT:
            raise OSError(errno.EFBIG, f"{human_size(size)}, far too large for what it should be", str(path))
        return file.read()


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it over `path`.

    A reader sees the old content or the whole new content, never a part; after a failure (an exception
    in the block) the temporary file is removed and `path` is as it was. Raises `OSError` that names a file.
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
    """The JSON value in `path`, or None when the file is missing, unreadable, not JSON, or holds what no text can."""
    known = _read.get()
    if known is not None and path in known:
        return known[path]
    value = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = read_regular(path)
        read = json.loads(content)
        if b"\\u" in content:  # half a pair of \u escapes is no character: it could be written nowhere
            os.fsencode(json.dumps(read, ensure_ascii=False))
        value = read
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
    with os.fdopen(open_regular(path), "rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 of what is left to read in an open file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Make renames inside the directory `path` survive a power cut, where the file system can promise that."""
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
    """Rename a file or folder, replacing a file of that name.

    Where the target is on another file system (`work/` or `trash/` on scratch, say) it is copied and synced under a
    temporary name first, then renamed, then removed from where it was. Raises `OSError`.
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
    """Make `target` the same file as `source`, by a hard link where the file system has them. Raises `OSError`."""
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
        # Not `shutil.copy`: modes and times are refused by some file systems, and nothing here depends on them.
        with os.fdopen(open_regular(source), "rb") as read, open(target, "xb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_debris(folder: Path, name: str) -> None:
    """Remove what killed writers of `folder/name` left behind (see `atomic_writer`)."""
    for path in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def human_size(size: float) -> str:
    """A number of bytes for people: 512 B, 1.5 MB."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
