"""Read an untrusted archive or unpacked folder.

An archive is read once, as a stream: the files of the data set are kept in memory under their base names, everything
else is skipped, and nothing is written to disk.

`tarfile` contributes only `TarInfo.frombuf`: `TarFile` mistakes a damaged header for the end of the archive, allocates
whatever size a header declares, and takes minutes over a long pax header of digits.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import hashlib
import os
import stat
import tarfile
import threading
from pathlib import Path
from typing import BinaryIO

from isal.igzip import IGzipFile
from isal.isal_zlib import error as IsalError

from pipeline.dataset.layouts import Collector
from pipeline.dataset.refusal import ADVICE, Progress, Refused
from pipeline.files import human_size
from pipeline.text import shown
from pipeline.workspace.sources import batch_folders, dataset_files

#: Bytes that an archive may unpack to; CIFAR-10 and CIFAR-100 unpack to 184 MB.
TOTAL_LIMIT = 1 << 30

#: Bytes that an archive may have: what it may unpack to, and more than gzip's own overhead.
ARCHIVE_LIMIT = TOTAL_LIMIT + TOTAL_LIMIT // 64

#: Members that an archive may have; CIFAR-10 has 8.
MEMBER_COUNT_LIMIT = 1000

#: Bytes of headers in front of one member, long names included.
HEADER_LIMIT = 1 << 18

#: Highest compression ratio, and how many unpacked bytes are allowed before it is checked.
RATIO_LIMIT, _RATIO_GRACE = 200, 1 << 26

_BLOCK = 1 << 20

#: Headers that describe the member after them, or all members.
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def read(path: Path, collector: Collector, progress: Progress) -> str | None:
    """Pass the files of the data set at `path` to `collector`. Returns an archive's SHA-256, None for a folder.

    Raises `Refused`.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _read_folder(path, collector, progress)
            return None
        if not stat.S_ISREG(mode):
            raise Refused("is neither a file nor a folder")
        with open(path, "rb") as file:
            return _read_archive(file, collector, progress)
    except FileNotFoundError:
        raise Refused("no such file or folder") from None
    except (OSError, ValueError) as error:  # ValueError: an impossible path
        raise Refused(f"cannot be read: {shown(getattr(error, 'strerror', None) or str(error))}") from None


def looks_like_html(head: bytes) -> bool:
    """Whether this is the start of an HTML or XML page, such as a web server's error page."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _read_archive(file: BinaryIO, collector: Collector, progress: Progress) -> str:
    size = os.fstat(file.fileno()).st_size
    compressed = _is_compressed(file.read(tarfile.BLOCKSIZE))
    if size > ARCHIVE_LIMIT:
        raise Refused(f"is {human_size(size)}, far more than CIFAR-10 or CIFAR-100; not unpacked")
    stream = _Stream(file, size, compressed, progress)
    ended = threading.Event()
    # hashlib and zlib release the GIL, so the checksum is free on a second core.
    with concurrent.futures.ThreadPoolExecutor(1) as hasher:
        digest = hasher.submit(_sha256, file.fileno(), ended)
        try:
            _read_tar(stream, collector)
            return digest.result()
        finally:
            ended.set()  # do not wait for the checksum after an error or Ctrl-C


def _is_compressed(head: bytes) -> bool:
    """Whether the archive is a tar.gz rather than a plain tar. Raises `Refused` for anything else."""
    if not head:
        raise Refused("is empty")
    if head.startswith(b"\x1f\x8b"):
        return True
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # checks the checksum; v7 has no `ustar` magic
        return False
    if looks_like_html(head):
        raise Refused("is an HTML page (an error or login page?), not an archive")
    raise Refused(
        f"is not an archive, or its first header is damaged (it begins with {head[:24]!r}); "
        "expected a .tar.gz or .tar in the binary or python layout of CIFAR-10 or CIFAR-100"
    )


def _read_tar(stream: _Stream, collector: Collector) -> None:
    count = 0
    while (member := _next_member(stream)) is not None:
        count += 1
        if count > MEMBER_COUNT_LIMIT:
            raise Refused(f"holds more than {MEMBER_COUNT_LIMIT} members")
        _refuse_hostile(member)
        name = os.path.basename(member.name)
        if member.isreg() and collector.wants(name, member.size):
            collector.add(name, stream.read(member.size, name))
        elif member.isreg():
            stream.skip(member.size, name)
    stream.drain()


def _next_member(stream: _Stream) -> tarfile.TarInfo | None:
    """Return the header of the next member, with any long name applied; None at the end of the archive."""
    limit = stream.position + HEADER_LIMIT
    name = ""
    while (member := _next_header(stream)) is not None and member.type in _EXTENSIONS:
        if stream.position + member.size > limit:
            raise Refused(f"a member's header is larger than {HEADER_LIMIT} bytes")
        content = bytes(stream.read(member.size, "a header"))
        if member.type == tarfile.GNUTYPE_LONGNAME:
            name = _text(content.split(b"\0")[0])
        elif member.type == tarfile.XHDTYPE:
            name = _pax_records(content).get("path", name)
    if member is not None and name:
        member.name = name
    return member


def _next_header(stream: _Stream) -> tarfile.TarInfo | None:
    """Parse the next block as a header; None for the block of zeros that ends an archive."""
    block = bytes(stream.read(tarfile.BLOCKSIZE, "its headers, before the end-of-archive mark"))
    if not any(block):
        return None
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        where = stream.position - tarfile.BLOCKSIZE
        raise Refused(f"is not a readable tar archive (at byte {where:,} of it: {error})") from None
    if member.size < 0:
        raise Refused(f"member {shown(member.name)} has a negative size")
    return member


def _pax_records(content: bytes) -> dict[str, str]:
    """Parse a pax header: records `<length of the record> <key>=<value>\\n`."""
    records, position = {}, 0
    while position < len(content):
        digits = content[position : position + 7].partition(b" ")[0]
        end = position + (int(digits) if digits.isdigit() else 0)
        key, equals, value = content[position + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise Refused(f"holds a damaged pax header ({shown(_text(content[position : position + 40]))})")
        records[_text(key)] = _text(value)
        position = end
    return records


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _refuse_hostile(member: tarfile.TarInfo) -> None:
    which = f"member {shown(member.name)}"
    if member.issym() or member.islnk():
        raise Refused(f"{which} is a link to {shown(member.linkname)}; a data set holds plain files only")
    if member.issparse() or not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
        kind = "a device or pipe" if member.isdev() else "of a special type"
        raise Refused(f"{which} is {kind}; a data set holds plain files only")
    if member.name.startswith(("/", "\\")) or ".." in member.name.replace("\\", "/").split("/"):
        raise Refused(f"{which} points outside of the archive")


class _Stream:
    """The unpacked bytes of an archive, forward only, never more than `TOTAL_LIMIT` of them."""

    def __init__(self, file: BinaryIO, size: int, compressed: bool, progress: Progress) -> None:
        file.seek(0)
        self._file, self._size, self._progress = file, size, progress
        self._unpacked = IGzipFile(fileobj=file, mode="rb") if compressed else file
        self.position = 0  # unpacked bytes read so far

    def read(self, count: int, name: str) -> bytearray:
        """Read the next `count` bytes of `name`, allocating only for bytes that are there, and skip the padding."""
        content = bytearray()
        while len(content) < count:
            content += self._read_some(count - len(content), name)
            self._progress(min(self._file.tell() / self._size, 1.0), f"reading {shown(name)}")
        self.skip(0, name)
        return content

    def skip(self, count: int, name: str) -> None:
        """Skip the next `count` bytes and the padding after them."""
        count += -(self.position + count) % tarfile.BLOCKSIZE
        while count:
            count -= len(self._read_some(count, name))

    def drain(self) -> None:
        """Read to the end of the file, so that the gzip checksum is verified.

        Raises `Refused` if anything but zeros follows the last record: it belongs to a member with a damaged header.
        Garbage inside that record is accepted, because old programs leave it there.
        """
        left = tarfile.RECORDSIZE
        while block := self._read_block(_BLOCK):
            if block[left:].strip(b"\0"):
                raise Refused("is damaged: data follows its end-of-archive mark")
            left = max(left - len(block), 0)

    def _read_some(self, count: int, name: str) -> bytes:
        """Read 1 to `count` bytes."""
        block = self._read_block(min(count, _BLOCK))
        if not block:
            raise Refused(f"is truncated: it ends inside {shown(name)}")
        return block

    def _read_block(self, count: int) -> bytes:
        """Read up to `count` bytes; empty at the end."""
        try:
            block = self._unpacked.read(count)
        except EOFError:
            raise Refused(f"is truncated: its gzip data ends after {self._size} bytes") from None
        except (gzip.BadGzipFile, IsalError, OverflowError) as error:  # type: ignore[misc]
            raise Refused(f"its gzip data is damaged ({shown(str(error))})") from None
        self.position += len(block)
        if self.position > TOTAL_LIMIT:
            raise Refused(f"unpacks to more than {human_size(TOTAL_LIMIT)} (CIFAR-10 and CIFAR-100: 184 MB)")
        if self.position > max(_RATIO_GRACE, RATIO_LIMIT * self._file.tell()):
            raise Refused(f"unpacks to more than {RATIO_LIMIT} times its size, which images never do")
        return block


def _sha256(descriptor: int, ended: threading.Event) -> str:
    """Hash an open file without moving its position; stops early once `ended` is set."""
    digest, offset = hashlib.sha256(), 0
    while not ended.is_set() and (block := os.pread(descriptor, _BLOCK, offset)):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _read_folder(folder: Path, collector: Collector, progress: Progress) -> None:
    """Read an unpacked archive, whose batches are in `folder` or in one folder inside it."""
    places = batch_folders(folder)
    if not places:
        reason = "no CIFAR-10 or CIFAR-100 batches (data_batch_1.bin, train.bin, …) in this folder"
        raise Refused(reason, f"{ADVICE}; a folder of images needs another data.name")
    if len(places) > 1:
        raise Refused(f"batches in more than one folder: {', '.join(shown(place.name) for place in places)}")
    files = dataset_files(places[0])
    if sum(path.stat().st_size for path in files) > TOTAL_LIMIT:
        raise Refused(f"its batches exceed {human_size(TOTAL_LIMIT)} (CIFAR-10 and CIFAR-100: 184 MB)")
    for index, path in enumerate(files):
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                collector.wants(path.name, size)  # raises `Refused` for an impossible size
                progress(index / len(files), f"reading {path.name}")
                content = bytearray(size)
                if file.readinto(content) != size:
                    raise Refused(f"{path.name} changed while it was being read")
        except OSError as error:
            raise Refused(f"{path.name} cannot be read: {error.strerror}") from None
        collector.add(path.name, content)
