"""Reading an archive or an unpacked folder without trusting it.

An archive is read once, as a stream: known members go into memory by their base name, everything else is skipped,
nothing is ever written to disk. Links, devices, names that leave the archive, and archives that unpack to more
than `TOTAL_LIMIT` bytes are refused. `read` feeds a `layouts.Collector` and leaves nothing behind.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import stat
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.dataset.layouts import Collector
from pipeline.dataset.messages import Refused, Tell, shown

try:  # inflates about 1.4 times as fast as zlib
    from isal import isal_zlib as inflate  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    inflate = zlib  # type: ignore[misc]

#: Bytes that an archive may unpack to; CIFAR-10 has 184 MB.
TOTAL_LIMIT = 1 << 30

#: Members that an archive may have; CIFAR-10 has 8.
MEMBER_COUNT_LIMIT = 1000

#: Bytes of headers before one member, long names included.
HEADER_LIMIT = 1 << 18

_CHUNK = 1 << 18
_OUTPUT = 1 << 20

_KINDS = {
    b"PK\x03\x04": "a zip file",
    b"\xfd7zXZ\x00": "an xz file",
    b"BZh": "a bzip2 file",
    b"7z\xbc\xaf": "a 7z file",
    b"Rar!": "a rar file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"\x93NUMPY": "a numpy file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


def read(path: Path, name: str, collector: Collector, tell: Tell) -> str | None:
    """Feed the batches at `path` (a file or a folder, called `name` in messages) to `collector`.

    Returns the SHA-256 of an archive, None for a folder. Raises `Refused` with what is wrong.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _read_folder(path, name, collector, tell)
            return None
        if not stat.S_ISREG(mode):
            raise Refused(name, "is neither a file nor a folder")
        with open(path, "rb") as file:
            return _read_archive(file, name, collector, tell)
    except FileNotFoundError:
        raise Refused(name, "no such file or folder") from None
    except OSError as error:
        raise Refused(name, f"cannot be read: {error.strerror or error}") from None


def looks_like_html(head: bytes) -> bool:
    """True for the start of an HTML or XML page, which is what a web server's error looks like."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _read_archive(file: BinaryIO, name: str, collector: Collector, tell: Tell) -> str:
    size = os.fstat(file.fileno()).st_size
    stream = _Stream(file, name, size, compressed=_is_compressed(file.read(512), name), tell=tell)
    # hashlib and zlib release the interpreter's lock: the checksum costs nothing on a second core.
    with concurrent.futures.ThreadPoolExecutor(1) as second_core:
        digest = second_core.submit(_sha256, file.fileno())
        try:
            _read_tar(stream, name, collector)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise Refused(name, f"is not a readable tar archive ({shown(str(error))})") from None
        return digest.result()


def _is_compressed(head: bytes, name: str) -> bool:
    """Whether the archive is a tar.gz (True) or a plain tar (False). Anything else is refused by its kind."""
    if not head:
        raise Refused(name, "is empty")
    if head.startswith(b"\x1f\x8b"):
        return True
    if head[257:262] == b"ustar":
        return False
    if looks_like_html(head):
        raise Refused(name, "is an HTML page (an error or login page?), not an archive")
    kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "of an unknown kind")
    raise Refused(name, f"is {kind}; expected a .tar.gz or .tar in CIFAR-10's binary or python layout")


def _read_tar(stream: _Stream, name: str, collector: Collector) -> None:
    stream.allow(HEADER_LIMIT)
    count = 0
    # The stream only goes forward; between two members it stands exactly where the next header starts, so that
    # tarfile never has to seek.
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            count += 1
            if count > MEMBER_COUNT_LIMIT:
                raise Refused(name, f"holds more than {MEMBER_COUNT_LIMIT} members")
            _refuse_hostile(member, name)
            if member.isreg():
                _read_member(stream, member, collector)
            stream.allow(HEADER_LIMIT)
    stream.drain()


def _read_member(stream: _Stream, member: tarfile.TarInfo, collector: Collector) -> None:
    stream.allow(member.size + tarfile.BLOCKSIZE)
    base = os.path.basename(member.name)
    if collector.wants(base, member.size):
        content = bytearray(member.size)
        stream.fill(memoryview(content), base)
        collector.add(base, content)
    else:
        stream.skip(member.size, base)
    stream.skip(-member.size % tarfile.BLOCKSIZE, base)


def _refuse_hostile(member: tarfile.TarInfo, name: str) -> None:
    which = f"member {shown(member.name)}"
    if member.issym() or member.islnk():
        raise Refused(name, f"{which} is a link to {shown(member.linkname)}; a data set holds plain files only")
    if member.issparse() or not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
        kind = "a device or pipe" if member.isdev() else "of a special type"
        raise Refused(name, f"{which} is {kind}; a data set holds plain files only")
    parts = member.name.replace("\\", "/").split("/")
    if member.name.startswith(("/", "\\")) or ".." in parts:
        raise Refused(name, f"{which} points outside of the archive")
    if member.size < 0:
        raise Refused(name, f"{which} has a negative size")


class _Stream:
    """The unpacked bytes of an archive, forward only, never more of them than were allowed.

    `fill`, `skip` and `drain` are for this module; `read`, `tell` are what tarfile calls.
    """

    def __init__(self, file: BinaryIO, name: str, size: int, compressed: bool, tell: Tell) -> None:
        file.seek(0)
        self._file, self._name, self._size, self._tell = file, name, size, tell
        self._inflater: Any = inflate.decompressobj(31) if compressed else None
        self._block = memoryview(b"")
        self._position = 0
        self._allowed = 0

    def allow(self, count: int) -> None:
        """Permit `count` more bytes from here."""
        self._allowed = min(self._position + count, TOTAL_LIMIT)

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer at the end of the archive."""
        self._check(count)
        content = bytearray()
        while len(content) < count and (piece := self._take(count - len(content))):
            content += piece
        return bytes(content)

    def fill(self, target: memoryview, member: str) -> None:
        """Fill `target` with the next bytes, which belong to `member`."""
        self._check(len(target))
        filled = 0
        while filled < len(target):
            piece = self._take(len(target) - filled)
            if not piece:
                raise self._cut(member)
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._tell(self._file.tell() / max(self._size, 1), f"reading {member}")

    def skip(self, count: int, member: str) -> None:
        """Pass over the next `count` bytes."""
        self._check(count)
        while count:
            piece = self._take(count)
            if not piece:
                raise self._cut(member)
            count -= len(piece)

    def drain(self) -> None:
        """Go on to the end of the file, so that the checksum of the gzip format is checked too."""
        while self._take(_OUTPUT):
            if self._position > TOTAL_LIMIT:
                raise self._too_big()

    def _check(self, count: int) -> None:
        if self._position + count > TOTAL_LIMIT:
            raise self._too_big()
        if self._position + count > self._allowed:
            raise Refused(self._name, f"a member's header is larger than {HEADER_LIMIT} bytes")

    def _too_big(self) -> Refused:
        return Refused(self._name, f"unpacks to more than {TOTAL_LIMIT >> 20} MB, CIFAR-10 has 176: not unpacked")

    def _cut(self, member: str) -> Refused:
        return Refused(self._name, f"is cut short: it ends inside {shown(member)}")

    def _take(self, count: int) -> memoryview:
        """At most `count` of the next bytes, none at the end."""
        if not self._block:
            self._block = memoryview(self._more())
        piece, self._block = self._block[:count], self._block[count:]
        self._position += len(piece)
        return piece

    def _more(self) -> bytes:
        if self._inflater is None:
            return self._file.read(_OUTPUT)
        while True:
            if self._inflater.eof:
                rest = self._inflater.unused_data or self._file.read(_CHUNK)
                if not rest.startswith(b"\x1f"):
                    return b""  # the end; padding after it is allowed, as gunzip does
                self._inflater = inflate.decompressobj(31)
            else:
                rest = self._inflater.unconsumed_tail or self._file.read(_CHUNK)
            try:
                # The limit matters: a few hundred kB can inflate a thousandfold.
                block: bytes = self._inflater.decompress(rest, _OUTPUT)
            except (zlib.error, inflate.error) as error:  # type: ignore[misc]
                raise Refused(self._name, f"its gzip data is damaged ({shown(str(error))})") from None
            if block:
                return block
            if not rest and not self._inflater.eof:
                raise Refused(self._name, f"is cut short: its gzip data breaks off after {self._size} bytes")


def _sha256(descriptor: int) -> str:
    """SHA-256 of an open file, read beside whoever else reads it."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, 1 << 20, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _read_folder(folder: Path, name: str, collector: Collector, tell: Tell) -> None:
    """Read an unpacked archive: the batches lie in `folder`, or in one folder inside it."""
    place = _batch_folder(folder, name)
    entries = sorted(place.iterdir())
    for index, entry in enumerate(entries):
        if not entry.is_file():
            continue
        with open(entry, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not collector.wants(entry.name, size):
                continue
            if size > TOTAL_LIMIT:
                raise Refused(name, f"{entry.name} has {size} bytes, more than any batch")
            tell(index / len(entries), f"reading {entry.name}")
            content = bytearray(size)
            if file.readinto(content) != size:
                raise Refused(name, f"{entry.name} changed while it was being read")
            collector.add(entry.name, content)


def _batch_folder(folder: Path, name: str) -> Path:
    candidates = [folder, *(entry for entry in sorted(folder.iterdir()) if entry.is_dir())]
    found = [place for place in candidates if any(Collector.is_batch(entry.name) for entry in place.iterdir())]
    if not found:
        raise Refused(name, "no CIFAR-10 batches (data_batch_1.bin or data_batch_1, …) in this folder")
    if len(found) > 1:
        raise Refused(name, f"batches in more than one folder: {', '.join(shown(place.name) for place in found)}")
    return found[0]
