"""Download one archive, resuming where an earlier attempt broke off.

`<target>` appears once the download is complete. Until then there is `<target>.part`, with `<target>.part.json` to
identify the content that it is part of. `requests` neither resumes nor limits a download, so both are done here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import address
from pipeline.dataset.archive import ARCHIVE_LIMIT, looks_like_html
from pipeline.dataset.refusal import Progress, Refused
from pipeline.files import human_size, open_regular, read_json, remove_debris, write_json
from pipeline.text import shown

if TYPE_CHECKING:
    import requests

#: Seconds to wait for a connection, and for the next byte.
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0

#: Seconds for the headers of a response, and for each block of its body (6.5 kB/s): a slower one is cut off.
BLOCK_TIMEOUT = 40.0
_BLOCK = 1 << 18

#: Attempts without progress before an address is given up, and seconds before the second one, doubled each time.
TRIES, BACKOFF = 4, 1.0

#: Bytes that a download may have. The archives of CIFAR-10 and CIFAR-100 have 170 MB.
DOWNLOAD_LIMIT = ARCHIVE_LIMIT

#: An attempt that brings at least this many new bytes counts as progress.
_MIN_PROGRESS = 1 << 16

_T = TypeVar("_T")


class _Retryable(Exception):
    """This attempt failed, but the next one may succeed."""


class _TooSlow(_Retryable):
    """This attempt counts as a failure even if it made progress: a slow server must not be retried for ever."""


@dataclass(frozen=True)
class _Content:
    """What a response says about its content. `address` is a digest, because an address can contain a password."""

    address: str = ""
    validator: str | None = None
    length: int | None = None


class _Partial:
    """`<target>.part`, and `<target>.part.json` to identify its content."""

    def __init__(self, target: Path, url: str) -> None:
        self.file, self.record = (target.with_name(target.name + end) for end in (".part", ".part.json"))
        self.address = hashlib.sha256(address.identity(url).encode()).hexdigest()

    def content(self) -> _Content:
        with contextlib.suppress(TypeError):  # no record, or not one of ours
            return _Content(**(read_json(self.record) or {}))
        return _Content()

    def size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.file.stat().st_size
        return 0

    def offset(self) -> int:
        """How many bytes can be kept: none without an ETag or a date to tell whether the content is the same."""
        content = self.content()
        return self.size() if content.address == self.address and content.validator else 0

    def begin(self, content: _Content) -> None:
        # In this order, a kill never leaves old bytes under the new content's record.
        self.file.unlink(missing_ok=True)
        write_json(self.record, asdict(content))


def download(url: str, target: Path, progress: Progress, note: Callable[[str], None]) -> bool:
    """Download `url` to `target`. Returns True if it came in one piece, so that no parts can be joined wrongly.

    Raises `Refused` when the address does not yield the archive, `OSError` when it cannot be stored.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(target, url)
    resumed, futile, furthest = partial.offset() > 0, 0, 0
    while True:
        try:
            _receive(url, partial, progress)
            break
        except _Retryable as reason:
            offset = partial.offset()
            resumed = resumed or offset > 0
            # Only bytes beyond the furthest point so far count, or a server that cannot resume is retried for ever.
            advanced = offset >= furthest + _MIN_PROGRESS and not isinstance(reason, _TooSlow)
            futile = 0 if advanced else futile + 1
            furthest = max(furthest, offset)
            if futile >= TRIES:
                raise Refused(f"{reason} ({TRIES} tries)", retryable=True) from None
            pause = BACKOFF * 2 ** max(futile - 1, 0)
            note(f"{reason}; at {human_size(offset)}, retrying in {pause:g} s")
            time.sleep(pause)
    os.replace(partial.file, target)
    partial.record.unlink(missing_ok=True)
    return not resumed


def remove(target: Path) -> None:
    """Remove a download, finished or partial."""
    for end in ("", ".part", ".part.json"):
        target.with_name(target.name + end).unlink(missing_ok=True)
    remove_debris(target.parent, target.name + ".part.json")


def _receive(url: str, partial: _Partial, progress: Progress) -> None:
    """Make one request, resuming `.part` where possible. Raises `_Retryable` or `Refused`."""
    offset, before = partial.offset(), partial.content()
    if offset and before.length == offset:
        return  # killed between the last byte and the rename
    response = _get(url, offset, before.validator)
    content = _describe(response, partial.address)
    resumes = response.status_code == 206
    if response.status_code == 416 or (resumes and not _fits(response, content, before, offset)):
        partial.file.unlink(missing_ok=True)
        raise _Retryable("the content changed, starting over")
    _store(response, content, offset if resumes else 0, partial, progress)


def _get(url: str, offset: int, validator: str | None) -> requests.Response:
    import requests  # late: only a download needs it

    # The bytes will be hashed, so no server or proxy may recompress them.
    headers = {"Accept-Encoding": "identity"}
    if offset and validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
        timeouts = (CONNECT_TIMEOUT, READ_TIMEOUT)
        response = _with_timeout(
            lambda: requests.get(
                url, headers=headers, stream=True, timeout=timeouts, hooks={"response": _close_redirect}
            ),
            "no answer",
        )
    except (requests.exceptions.SSLError, requests.exceptions.TooManyRedirects) as error:
        raise Refused(_reason(error)) from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Retryable(_reason(error)) from None
    except requests.exceptions.InvalidSchema:
        if url.lower().startswith(("http://", "https://")):
            raise Refused("redirects to an address that is neither http nor https") from None
        advice = "get it onto this machine and set data.source to its path; a folder of images must be on this machine"
        raise Refused("is not an address that can be downloaded: only http and https are supported", advice) from None
    except (requests.RequestException, ValueError) as error:
        raise Refused(f"is not an address that can be downloaded ({type(error).__name__})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        # The file named by REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE is missing.
        raise Refused(f"cannot be reached: {error}", "check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE") from None
    _refuse_negative_chunks(response.raw._fp)
    status = response.status_code
    if status in (200, 416) or (status == 206 and offset):
        return response
    answer = f"answered {status} {shown(response.reason or '')}".rstrip()
    if status >= 500 or status in (408, 425, 429):
        raise _Retryable(answer)
    raise Refused(answer)


def _refuse_negative_chunks(answer: Any) -> None:
    """Make `http.client` fail on a chunk of -1 bytes, which it would otherwise read to the end in one go."""
    next_size = answer._read_next_chunk_size

    def checked() -> int:
        size = next_size()
        if size < 0:
            raise ValueError(size)  # handled like a broken connection
        return int(size)

    answer._read_next_chunk_size = checked


def _close_redirect(response: requests.Response, **options: object) -> None:
    """Close a redirect unread: `requests` would read and decompress its whole body."""
    if response.is_redirect:
        response.close()


def _describe(response: requests.Response, address: str) -> _Content:
    """Identify the content that this response is (part of)."""
    headers = response.headers
    etag = headers.get("ETag", "")
    # A weak ETag may not be used to resume (RFC 9110, section 13.1.5).
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    part = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    length = part[1] if part else headers.get("Content-Length", "") if response.status_code == 200 else ""
    # int() refuses more than 4,300 digits; 16 are enough to see that it is too large.
    return _Content(address, validator, int(length[:16]) if length.isdecimal() else None)


def _fits(response: requests.Response, content: _Content, before: _Content, offset: int) -> bool:
    """Whether a partial response is the rest of what `.part` begins with."""
    starts = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
    return starts and content.validator == before.validator and before.length in (None, content.length)


def _store(response: requests.Response, content: _Content, offset: int, partial: _Partial, progress: Progress) -> None:
    """Write the body into `.part` from `offset` on. Raises `_Retryable` when it ends too early."""
    length, received = content.length, offset
    if length is not None and length > DOWNLOAD_LIMIT:
        raise Refused(f"is {human_size(length)}, far more than CIFAR-10 or CIFAR-100; not downloaded")
    free = shutil.disk_usage(partial.file.parent).free + (0 if offset else partial.size())
    if length is not None and length - offset > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial.file.parent))
    block = _read(response)
    if offset == 0:
        if looks_like_html(block):
            raise Refused("answered with an HTML page instead of an archive")
        partial.begin(content)
    try:
        descriptor = open_regular(partial.file, os.O_RDWR | (0 if offset else os.O_CREAT | os.O_TRUNC))
        with os.fdopen(descriptor, "r+b") as file:
            file.seek(offset)
            while block:
                file.write(block)
                received += len(block)
                if received > DOWNLOAD_LIMIT:
                    raise Refused(f"is larger than {human_size(DOWNLOAD_LIMIT)}; stopped")
                total = f" of {human_size(length)}" if length else ""
                progress(min(received / length, 1.0) if length else 0.0, f"downloading {human_size(received)}{total}")
                block = _read(response)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(partial.file)  # `write` leaves it out
        raise
    if length is not None and received != length:
        if received > length:
            partial.file.unlink()
        raise _Retryable(f"was cut off after {received:,} of {length:,} bytes")


def _read(response: requests.Response) -> bytes:
    """Read the next bytes as sent, without decoding; empty at the end."""
    from urllib3.exceptions import HTTPError

    try:
        return (
            _with_timeout(lambda: response.raw.read(_BLOCK, decode_content=False), f"fewer than {_BLOCK:,} bytes")
            or b""
        )
    except (HTTPError, OSError) as error:
        raise _Retryable(f"was cut off ({_reason(error)})") from None


def _with_timeout(work: Callable[[], _T], problem: str) -> _T:
    """Return the result of `work`, or raise `_TooSlow` with `problem` after `BLOCK_TIMEOUT` seconds.

    A socket's timeout restarts with every byte, and a DNS lookup has none. So `work` runs in a thread, which is
    abandoned when it takes too long.
    """
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    if not concurrent.futures.wait([future], BLOCK_TIMEOUT).done:
        raise _TooSlow(f"is too slow: {problem} within {BLOCK_TIMEOUT:g} s")
    return future.result()


def _reason(error: BaseException) -> str:
    """Describe a failed connection. The libraries' own messages can contain a password or token."""
    text = repr(error)
    for pattern, words in {
        "[Errno -": "the host name cannot be resolved",
        "Connection refused": "the connection was refused",
        "ConnectTimeout": f"no connection within {CONNECT_TIMEOUT:g} s",
        "ReadTimeout": f"no answer for {READ_TIMEOUT:g} s",
        "SSL": "the secure connection failed (certificate?)",
        "Proxy": "the proxy failed",
        "TooManyRedirects": "redirects in a circle",
        "unreachable": "the network is unreachable",
    }.items():
        if pattern in text:
            return words
    return "the connection broke"
