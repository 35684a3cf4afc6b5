"""Downloading one archive, resumed where it was cut.

Leaves `<target>` once the whole content is there; until then `<target>.part` with `<target>.part.json` (which content
it is a part of).
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
from pipeline.dataset.archive import looks_like_html
from pipeline.dataset.refusal import Refused, Tell
from pipeline.files import human_size, open_regular, read_json, remove_debris, write_json
from pipeline.text import shown

if TYPE_CHECKING:
    import requests

#: Seconds to wait for a connection, and for the next byte.
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0

#: Seconds for the headers of an answer, and for each block of its content (6.5 kB/s): what is slower counts as cut.
BLOCK_TIMEOUT = 40.0
_BLOCK = 1 << 18

#: Tries in a row that bring nothing new before an address is given up; seconds before the second, doubled each time.
TRIES, BACKOFF = 4, 1.0

#: Bytes that a download may have. The archives of CIFAR-10 and CIFAR-100 have 170 MB.
DOWNLOAD_LIMIT = 2_000_000_000

#: New bytes that make a try count as progress.
_PROGRESS = 1 << 16

_T = TypeVar("_T")


class _TryAgain(Exception):
    """This try failed for a reason that may pass."""


class _TooSlow(_TryAgain):
    """A try like this one is not worth repeating for ever, whatever it brought."""


@dataclass(frozen=True)
class _Content:
    """What an answer says of the content behind an address. `address` is a digest: an address can hold a password."""

    address: str = ""
    validator: str | None = None
    length: int | None = None


class _Partial:
    """`<target>.part`, and what it is a part of in `<target>.part.json`."""

    def __init__(self, target: Path, url: str) -> None:
        self.file, self.record = (target.with_name(target.name + end) for end in (".part", ".part.json"))
        self.address = hashlib.sha256(address.identity(url).encode()).hexdigest()

    def content(self) -> _Content:
        with contextlib.suppress(TypeError):  # no record, or one of something else
            return _Content(**(read_json(self.record) or {}))
        return _Content()

    def size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.file.stat().st_size
        return 0

    def offset(self) -> int:
        """How many bytes can be kept: none unless an ETag or a date can tell whether they are of the same content."""
        content = self.content()
        return self.size() if content.address == self.address and content.validator else 0

    def begin(self, content: _Content) -> None:
        # In this order a kill at any point never leaves old bytes under the new content's name.
        self.file.unlink(missing_ok=True)
        write_json(self.record, asdict(content))


def download(url: str, target: Path, tell: Tell, note: Callable[[str], None]) -> bool:
    """Bring the content of `url` to `target`; True when it came in one piece, so that nothing was joined wrongly.

    Raises `Refused` when the address does not give the archive, `OSError` when it cannot be stored.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(target, url)
    resumed, futile, furthest = partial.offset() > 0, 0, 0
    while True:
        try:
            _receive(url, partial, tell)
            break
        except _TryAgain as reason:
            offset = partial.offset()
            resumed = resumed or offset > 0
            # Only bytes beyond the furthest point so far count: a server that cannot resume ends after TRIES.
            progress = offset >= furthest + _PROGRESS and not isinstance(reason, _TooSlow)
            futile = 0 if progress else futile + 1
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
    """Remove a download and everything that belongs to it."""
    for end in ("", ".part", ".part.json"):
        target.with_name(target.name + end).unlink(missing_ok=True)
    remove_debris(target.parent, target.name + ".part.json")


def _receive(url: str, partial: _Partial, tell: Tell) -> None:
    """One request, resuming `.part` where that is possible. Raises `_TryAgain` or `Refused`."""
    offset, before = partial.offset(), partial.content()
    if offset and before.length == offset:
        return  # killed between the last byte and the rename
    response = _get(url, offset, before.validator)
    content = _describe(response, partial.address)
    resumes = response.status_code == 206
    if response.status_code == 416 or (resumes and not _fits(response, content, before, offset)):
        partial.file.unlink(missing_ok=True)
        raise _TryAgain("the content changed, starting over")
    _store(response, content, offset if resumes else 0, partial, tell)


def _get(url: str, offset: int, validator: str | None) -> requests.Response:
    import requests  # late: only a download needs it

    # A server or proxy must not unpack or repack what will be hashed.
    headers = {"Accept-Encoding": "identity"}
    if offset and validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
        timeouts = (CONNECT_TIMEOUT, READ_TIMEOUT)
        response = _in_time(
            lambda: requests.get(url, headers=headers, stream=True, timeout=timeouts, hooks={"response": _close}),
            "no answer",
        )
    except (requests.exceptions.SSLError, requests.exceptions.TooManyRedirects) as error:
        raise Refused(_reason(error)) from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _TryAgain(_reason(error)) from None
    except requests.exceptions.InvalidSchema:
        if url.lower().startswith(("http://", "https://")):
            raise Refused("leads on to an address that is neither http nor https") from None
        advice = "get it onto this machine and set data.source to its path; a folder of images must be on this machine"
        raise Refused("is not an address that can be downloaded: only http and https are supported", advice) from None
    except (requests.RequestException, ValueError) as error:
        raise Refused(f"is not an address that can be downloaded ({type(error).__name__})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        # A file that REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names.
        raise Refused(f"cannot be reached: {error}", "check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE") from None
    _refuse_negative_chunks(response.raw._fp)
    status = response.status_code
    if status in (200, 416) or (status == 206 and offset):
        return response
    answer = f"answered {status} {shown(response.reason or '')}".rstrip()
    if status >= 500 or status in (408, 425, 429):
        raise _TryAgain(answer)
    raise Refused(answer)


def _refuse_negative_chunks(answer: Any) -> None:
    """A chunk of -1 bytes is one without end to `http.client`, which would read it all at once."""
    next_size = answer._read_next_chunk_size

    def checked() -> int:
        size = next_size()
        if size < 0:
            raise ValueError(size)  # which counts as a connection that was cut
        return int(size)

    answer._read_next_chunk_size = checked


def _close(response: requests.Response, **about: object) -> None:
    """Of an answer that leads elsewhere only the headers count; `requests` would read its body whole and unpack it."""
    if response.is_redirect:
        response.close()


def _describe(response: requests.Response, address: str) -> _Content:
    """Which content this response is (a part) of."""
    headers = response.headers
    etag = headers.get("ETag", "")
    # A weak ETag may not be used to resume (RFC 9110, section 13.1.5).
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    length = whole[1] if whole else headers.get("Content-Length", "") if response.status_code == 200 else ""
    # Of a number of 5,000 digits the first ones say enough.
    return _Content(address, validator, int(length[:16]) if length.isdecimal() else None)


def _fits(response: requests.Response, content: _Content, before: _Content, offset: int) -> bool:
    """Whether a partial response is the rest of what `.part` begins with."""
    starts = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
    return starts and content.validator == before.validator and before.length in (None, content.length)


def _store(response: requests.Response, content: _Content, offset: int, partial: _Partial, tell: Tell) -> None:
    """Write the body into `.part` from `offset` on. Raises `_TryAgain` when it ends too early."""
    length, received = content.length, offset
    if length is not None and length > DOWNLOAD_LIMIT:
        raise Refused(f"has {human_size(length)}, far more than CIFAR-10 or CIFAR-100; not downloaded")
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
                whole = f" of {human_size(length)}" if length else ""
                tell(min(received / length, 1.0) if length else 0.0, f"downloading {human_size(received)}{whole}")
                block = _read(response)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(partial.file)  # `write` leaves it out
        raise
    if length is not None and received != length:
        if received > length:
            partial.file.unlink()
        raise _TryAgain(f"was cut off after {received:,} of {length:,} bytes")


def _read(response: requests.Response) -> bytes:
    """The next bytes as they are on the wire, none at the end."""
    from urllib3.exceptions import HTTPError

    try:
        return _in_time(lambda: response.raw.read(_BLOCK, decode_content=False), f"fewer than {_BLOCK:,} bytes") or b""
    except (HTTPError, OSError) as error:
        raise _TryAgain(f"was cut off ({_reason(error)})") from None


def _in_time(work: Callable[[], _T], otherwise: str) -> _T:
    """What `work` gives, within `BLOCK_TIMEOUT` seconds; raises `_TooSlow` after that.

    Timeouts of a socket start anew with each byte, and looking up a name has none at all. So `work` is done in a
    thread, which is left to itself when it takes too long.
    """
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    if not concurrent.futures.wait([future], BLOCK_TIMEOUT).done:
        raise _TooSlow(f"is too slow: {otherwise} within {BLOCK_TIMEOUT:g} s")
    return future.result()


def _reason(error: BaseException) -> str:
    """A few words about a failed connection. The libraries' own messages can hold a password or token."""
    text = repr(error)
    for sign, words in {
        "[Errno -": "the host name cannot be resolved",
        "Connection refused": "the connection was refused",
        "ConnectTimeout": f"no connection within {CONNECT_TIMEOUT:g} s",
        "ReadTimeout": f"no answer for {READ_TIMEOUT:g} s",
        "SSL": "the secure connection failed (certificate?)",
        "Proxy": "the proxy failed",
        "TooManyRedirects": "redirects in a circle",
        "unreachable": "the network is unreachable",
    }.items():
        if sign in text:
            return words
    return "the connection broke"
