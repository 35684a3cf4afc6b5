"""Reading an archive or an unpacked folder without trusting it.

An archive is read once, as a stream: the files of the data set go into memory under their base names, everything else
is skipped, nothing is written to disk.

Of tarfile only `TarInfo.frombuf` is used: its `TarFile` takes a damaged header for the end of the archive, allocates
what a header declares, and needs minutes for a long pax header of digits.
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
from pipeline.dataset.refusal import ADVICE, Refused, Tell
from pipeline.files import human_size
from pipeline.text import shown
from pipeline.workspace.sources import batch_folders, dataset_files

#: Bytes that an archive may unpack to; CIFAR-10 and CIFAR-100 have 184 MB.
TOTAL_LIMIT = 1 << 30

#: Members that an archive may have; CIFAR-10 has 8.
MEMBER_COUNT_LIMIT = 1000

#: Bytes of headers before one member, long names included.
HEADER_LIMIT = 1 << 18

#: How many times as large an archive's content may be as the archive itself, and from how many bytes on that counts.
RATIO_LIMIT, _UNCHECKED = 200, 1 << 26

_BLOCK = 1 << 20

#: Headers that say something about the member after them, or about all members.
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def read(path: Path, collector: Collector, tell: Tell) -> str | None:
    """Feed the files of the data set at `path` (an archive or a folder) to `collector`.

    Returns the SHA-256 of an archive, None for a folder. Raises `Refused`.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _read_folder(path, collector, tell)
            return None
        if not stat.S_ISREG(mode):
            raise Refused("is neither a file nor a folder")
        with open(path, "rb") as file:
            return _read_archive(file, collector, tell)
    except FileNotFoundError:
        raise Refused("no such file or folder") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise Refused(f"cannot be read: {shown(getattr(error, 'strerror', None) or str(error))}") from None


def looks_like_html(head: bytes) -> bool:
    """True for the start of an HTML or XML page, which is what a web server's error looks like."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _read_archive(file: BinaryIO, collector: Collector, tell: Tell) -> str:
    size = os.fstat(file.fileno()).st_size
    compressed = _is_compressed(file.read(tarfile.BLOCKSIZE))
    if size > TOTAL_LIMIT + TOTAL_LIMIT // 64:  # gzip itself adds less
        raise Refused(f"has {human_size(size)}, far more than CIFAR-10 or CIFAR-100: not unpacked")
    stream = _Stream(file, size, compressed, tell)
    ended = threading.Event()
    # hashlib and zlib release the interpreter's lock: the checksum costs nothing on a second core.
    with concurrent.futures.ThreadPoolExecutor(1) as second_core:
        digest = second_core.submit(_sha256, file.fileno(), ended)
        try:
            _read_tar(stream, collector)
            return digest.result()
        finally:
            ended.set()  # a refusal, or who stops this, does not wait for the checksum


def _is_compressed(head: bytes) -> bool:
    """Whether the archive is a tar.gz (True) or a plain tar (False). Anything else is refused by its kind."""
    if not head:
        raise Refused("is empty")
    if head.startswith(b"\x1f\x8b"):
        return True
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # its checksum tells, also without `ustar` (v7)
        return False
    if looks_like_html(head):
        raise Refused("is an HTML page (an error or login page?), not an archive")
    raise Refused(
        f"is no archive, or its first header is damaged (it begins with {head[:24]!r}); "
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
    """The header of the next member, with the name that the headers before it give it; None at the archive's end."""
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
    """The next block as a header; None for the block of zeros that ends an archive."""
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
    """What a pax header says: records `<length of the record> <key>=<value>\\n`."""
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

    def __init__(self, file: BinaryIO, size: int, compressed: bool, tell: Tell) -> None:
        file.seek(0)
        self._file, self._size, self._tell = file, size, tell
        self._unpacked = IGzipFile(fileobj=file, mode="rb") if compressed else file
        #: How many bytes were taken so far.
        self.position = 0

    def read(self, count: int, what: str) -> bytearray:
        """The next `count` bytes, which belong to `what`. They take no more memory than there are bytes."""
        content = bytearray()
        while len(content) < count:
            content += self._take(count - len(content), what)
            self._tell(min(self._file.tell() / self._size, 1.0), f"reading {shown(what)}")
        self.skip(0, what)
        return content

    def skip(self, count: int, what: str) -> None:
        """Pass over the next `count` bytes. Like `read`, on to the end of their last block."""
        count += -(self.position + count) % tarfile.BLOCKSIZE
        while count:
            count -= len(self._take(count, what))

    def drain(self) -> None:
        """Go on to the end of the file, so that the checksum of the gzip format is checked too.

        An archive ends with zeros; what else follows belongs to a member whose header is damaged. Old programs leave
        anything in the rest of the last record.
        """
        left = tarfile.RECORDSIZE
        while block := self._next(_BLOCK):
            if block[left:].strip(b"\0"):
                raise Refused("is damaged: data follows its end-of-archive mark")
            left = max(left - len(block), 0)

    def _take(self, count: int, what: str) -> bytes:
        """At most `count` of the next bytes, at least one."""
        piece = self._next(min(count, _BLOCK))
        if not piece:
            raise Refused(f"is truncated: it ends inside {shown(what)}")
        return piece

    def _next(self, count: int) -> bytes:
        """At most `count` of the next bytes, none at the end."""
        try:
            block = self._unpacked.read(count)
        except EOFError:
            raise Refused(f"is truncated: its gzip data ends after {self._size} bytes") from None
        except (gzip.BadGzipFile, IsalError, OverflowError) as error:  # type: ignore[misc]
            raise Refused(f"its gzip data is damaged ({shown(str(error))})") from None
        self.position += len(block)
        if self.position > TOTAL_LIMIT:
            raise Refused(f"unpacks to more than {human_size(TOTAL_LIMIT)} (CIFAR-10 and CIFAR-100: 184 MB)")
        if self.position > max(_UNCHECKED, RATIO_LIMIT * self._file.tell()):
            raise Refused(f"unpacks to more than {RATIO_LIMIT} times its size, which images never do")
        return block


def _sha256(descriptor: int, ended: threading.Event) -> str:
    """SHA-256 of an open file, read beside whoever else reads it; stops early once `ended` is set."""
    digest, offset = hashlib.sha256(), 0
    while not ended.is_set() and (block := os.pread(descriptor, _BLOCK, offset)):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _read_folder(folder: Path, collector: Collector, tell: Tell) -> None:
    """Read an unpacked archive: the batches lie in `folder`, or in one folder inside it."""
    places = batch_folders(folder)
    if not places:
        found = "no CIFAR-10 or CIFAR-100 batches (data_batch_1.bin, train.bin, …) in this folder"
        raise Refused(found, f"{ADVICE}; a folder of images needs another data.name")
    if len(places) > 1:
        raise Refused(f"batches in more than one folder: {', '.join(shown(place.name) for place in places)}")
    files = dataset_files(places[0])
    if sum(path.stat().st_size for path in files) > TOTAL_LIMIT:
        raise Refused(f"its batches have more than {human_size(TOTAL_LIMIT)}, those of CIFAR-10 and CIFAR-100 184 MB")
    for index, path in enumerate(files):
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if not collector.wants(path.name, size):
                    continue
                tell(index / len(files), f"reading {path.name}")
                content = bytearray(size)
                if file.readinto(content) != size:
                    raise Refused(f"{path.name} changed while it was being read")
        except OSError as error:
            raise Refused(f"{path.name} cannot be read: {error.strerror}") from None
        collector.add(path.name, content)
