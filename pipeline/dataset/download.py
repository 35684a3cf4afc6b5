"""Downloading one archive: continued where it was cut, checked before it counts.

Leaves `<target>` once the whole content is there and has the expected SHA-256; until then `<target>.part` with
`<target>.part.json` (which content it is a part of); after a wrong checksum the content as `<target>.bad`.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import address
from pipeline.dataset.archive import looks_like_html
from pipeline.dataset.messages import Refused, Tell, shown
from pipeline.files import human_size, read_json, remove_debris, sha256_file, write_json

if TYPE_CHECKING:
    import requests

#: Seconds to wait for a connection, and for the next bytes.
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0

#: A download that brings fewer bytes a second, over so many seconds, counts as cut; so do headers that take longer.
LEAST_SPEED, WINDOW = 10_000, 60.0

#: Tries in a row that bring nothing new before an address is given up; seconds before the second, doubled each time.
TRIES, BACKOFF = 4, 1.0

#: Bytes that a download may have. CIFAR-10's archive has 170 MB.
DOWNLOAD_LIMIT = 2_000_000_000

#: New bytes that make a try count as progress.
_PROGRESS = 1 << 16

_BLOCK = 1 << 16

_T = TypeVar("_T")


class _TryAgain(Exception):
    """This try failed for a reason that may pass."""


class _TooSlow(_TryAgain):
    """Whatever it brought, a try like this one is none to make again and again."""


@dataclass(frozen=True)
class _Content:
    """Which content the bytes in `.part` belong to. `address` is a digest: an address can hold a password."""

    address: str
    validator: str | None = None
    length: int | None = None


def download(
    url: str, shown_url: str, target: Path, expected: str | None, tell: Tell, note: Callable[[str], None]
) -> None:
    """Bring the content of `url` (`shown_url` in messages) to `target`.

    `expected` is its SHA-256 in hex digits, or None when that is not known. Raises `Refused` when the address does
    not give the archive, `OSError` when it cannot be stored.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = expected.lower() if expected else None
    with _session() as session:
        for last_chance in (False, True):
            resumed = _receive_all(session, url, shown_url, target, bool(expected), tell, note)
            found = sha256_file(_part(target))
            if expected is None or found == expected:
                os.replace(_part(target), target)
                _record(target).unlink(missing_ok=True)
                return
            set_aside(_part(target), target)
            if not resumed or last_chance:
                break
            note(f"{shown_url}: the continued download has the wrong SHA-256; getting it once more from the start")
    wrong = f"SHA-256 is {found}, expected {expected}; the download was kept as {target}.bad"
    raise Refused(shown_url, wrong)


def set_aside(file: Path, target: Path) -> None:
    """Keep a wrong download as `<target>.bad`, in place of an older one."""
    os.replace(file, target.with_name(target.name + ".bad"))
    _record(target).unlink(missing_ok=True)


def remove(target: Path) -> None:
    """Remove a download and everything that belongs to it."""
    for file in (target, _part(target), _record(target), target.with_name(target.name + ".bad")):
        file.unlink(missing_ok=True)
    remove_debris(target.parent, _record(target).name)


def _receive_all(
    session: requests.Session,
    url: str,
    shown_url: str,
    target: Path,
    checked: bool,
    tell: Tell,
    note: Callable[[str], None],
) -> bool:
    """Try until `.part` is whole; True when it was put together from more than one response."""
    resumed, futile, furthest = _offset(target, url, checked) > 0, 0, 0
    while True:
        try:
            _receive(session, url, shown_url, target, checked, tell)
            return resumed
        except _TryAgain as reason:
            offset = _offset(target, url, checked)
            resumed = resumed or offset > 0
            # Only bytes beyond the furthest point so far count: a server that cannot continue ends after TRIES.
            progress = offset >= furthest + _PROGRESS and not isinstance(reason, _TooSlow)
            futile = 0 if progress else futile + 1
            furthest = max(furthest, offset)
            if futile >= TRIES:
                raise Refused(shown_url, f"{reason} ({TRIES} tries)", may_pass=True) from None
            pause = BACKOFF * 2 ** max(futile - 1, 0)
            note(f"{shown_url}: {reason}; at {human_size(offset)}, next try in {pause:g} s")
            time.sleep(pause)


def _receive(session: requests.Session, url: str, shown_url: str, target: Path, checked: bool, tell: Tell) -> None:
    """One request, continuing `.part` where that is possible. Raises `_TryAgain` or `Refused`."""
    offset = _offset(target, url, checked)
    record = _read_record(target)
    if offset and record.length == offset:
        return  # killed between the last byte and the rename
    with _closed(_get(session, url, shown_url, offset, record)) as response:
        content = _describe(response, url)
        if response.status_code == 416:
            _part(target).unlink(missing_ok=True)
            raise _TryAgain("cannot continue the download, starting over")
        if offset and not _continues(response, content, record, offset):
            if response.status_code == 206:
                _part(target).unlink(missing_ok=True)
                raise _TryAgain("the content changed, starting over")
            offset = 0
        _check_room(content.length, offset, target, shown_url)
        _store(response, content, offset, shown_url, target, tell)


def _get(session: requests.Session, url: str, shown_url: str, offset: int, record: _Content) -> requests.Response:
    import requests

    # A server or proxy must not unpack or repack what will be hashed.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if record.validator:
            headers["If-Range"] = record.validator
    try:
        timeouts = (CONNECT_TIMEOUT, READ_TIMEOUT)
        response = _in_time(lambda: session.get(url, headers=headers, stream=True, timeout=timeouts), "no answer")
    except (requests.exceptions.SSLError, requests.exceptions.TooManyRedirects) as error:
        raise Refused(shown_url, _reason(error)) from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _TryAgain(_reason(error)) from None
    except (requests.RequestException, ValueError) as error:
        raise Refused(shown_url, f"is not an address that can be downloaded ({type(error).__name__})") from None
    status = response.status_code
    if status in (200, 416) or (status == 206 and offset):
        return response
    response.close()
    answer = f"answered {status} {shown(response.reason or '')}".rstrip()
    if status >= 500 or status in (408, 425, 429):
        raise _TryAgain(answer)
    raise Refused(shown_url, answer)


def _describe(response: requests.Response, url: str) -> _Content:
    """Which content this response is (a part) of."""
    headers = response.headers
    etag = headers.get("ETag", "")
    # A weak ETag may not be used to continue (RFC 9110, section 13.1.5).
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    length = whole[1] if whole else headers.get("Content-Length", "") if response.status_code == 200 else ""
    # Of a number of 5,000 digits the first ones say enough.
    return _Content(_digest(url), validator, int(length[:16]) if length.isdecimal() else None)


def _continues(response: requests.Response, content: _Content, record: _Content, offset: int) -> bool:
    """Whether the response is the rest of what `.part` begins with."""
    starts = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
    same = content.validator == record.validator and record.length in (None, content.length)
    return response.status_code == 206 and starts and same


def _check_room(length: int | None, offset: int, target: Path, shown_url: str) -> None:
    if length is None:
        return
    if length > DOWNLOAD_LIMIT:
        raise Refused(shown_url, f"has {human_size(length)}, far more than CIFAR-10; not downloaded")
    free = shutil.disk_usage(target.parent).free
    if length - offset > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target.parent))


def _store(
    response: requests.Response, content: _Content, offset: int, shown_url: str, target: Path, tell: Tell
) -> None:
    """Write the body into `.part` from `offset` on. Raises `_TryAgain` when it ends too early."""
    block = _read(response)
    if offset == 0:
        if looks_like_html(block):
            raise Refused(shown_url, "answered with an HTML page instead of an archive")
        # In this order a kill at any point never leaves old bytes under the new content's name.
        _part(target).unlink(missing_ok=True)
        write_json(_record(target), asdict(content))
    received, pace = offset, _Pace(offset)
    with _writing(_part(target)), open(_part(target), "r+b" if offset else "wb") as file:
        file.seek(offset)
        try:
            while block:
                file.write(block)
                received += len(block)
                if received > DOWNLOAD_LIMIT:
                    raise Refused(shown_url, f"is larger than {human_size(DOWNLOAD_LIMIT)}; stopped")
                _tell_received(tell, received, content.length, shown_url)
                pace.check(received)
                block = _read(response)
        finally:
            file.flush()
        os.fsync(file.fileno())
    if content.length is not None and received != content.length:
        if received > content.length:
            _part(target).unlink()
        raise _TryAgain(f"was cut off after {received:,} of {content.length:,} bytes")


def _read(response: requests.Response) -> bytes:
    """The next bytes as they are on the wire, none at the end."""
    from urllib3.exceptions import HTTPError

    try:
        return _in_time(lambda: response.raw.read(_BLOCK, decode_content=False), f"fewer than {_BLOCK:,} bytes") or b""
    except (HTTPError, OSError) as error:
        raise _TryAgain(f"was cut off ({_reason(error)})") from None


def _in_time(work: Callable[[], _T], otherwise: str) -> _T:
    """What `work` gives, within `WINDOW` seconds; raises `_TooSlow` after that.

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
    if not concurrent.futures.wait([future], WINDOW).done:
        raise _TooSlow(f"is too slow: {otherwise} within {WINDOW:g} s")
    return future.result()


@contextlib.contextmanager
def _closed(response: requests.Response) -> Iterator[requests.Response]:
    """Close the response after this block, unless a thread still waits for it: closing would wait for the thread."""
    late = False
    try:
        yield response
    except _TooSlow:
        late = True
        raise
    finally:
        if not late:
            response.close()


class _Pace:
    """Watches how fast bytes come in."""

    def __init__(self, received: int) -> None:
        self._since, self._mark = time.monotonic(), received

    def check(self, received: int) -> None:
        """Raise `_TooSlow` when less than `LEAST_SPEED` came in over the last `WINDOW`."""
        seconds = time.monotonic() - self._since
        if seconds >= WINDOW:
            if received - self._mark < LEAST_SPEED * seconds:
                speed = human_size((received - self._mark) / seconds)
                raise _TooSlow(f"is too slow: {speed} a second over {seconds:.0f} s")
            self._since, self._mark = time.monotonic(), received


def _tell_received(tell: Tell, received: int, length: int | None, shown_url: str) -> None:
    if length:
        tell(received / length, f"downloading {human_size(received)} of {human_size(length)} from {shown_url}")
    else:
        tell(0.0, f"downloading {human_size(received)} from {shown_url}")


def _offset(target: Path, url: str, checked: bool) -> int:
    """How many bytes of `.part` can be kept: none unless they are known to be of the same content."""
    record = _read_record(target)
    # Without an ETag or a date only the checksum at the end can tell whether the parts fit together.
    if record.address != _digest(url) or not (record.validator or checked):
        return 0
    try:
        return _part(target).stat().st_size
    except FileNotFoundError:
        return 0


def _reason(error: BaseException) -> str:
    """A few words about a failed connection. The libraries' own messages can hold a password or token."""
    text = repr(error)
    for sign, words in {
        "NameResolution": "the host name cannot be resolved",
        "Name or service not known": "the host name cannot be resolved",
        "Connection refused": "the connection was refused",
        "ConnectTimeout": f"no connection within {CONNECT_TIMEOUT:g} s",
        "ReadTimeout": f"no answer for {READ_TIMEOUT:g} s",
        "Read timed out": f"no answer for {READ_TIMEOUT:g} s",
        "SSL": "the secure connection failed (certificate?)",
        "Proxy": "the proxy failed",
        "TooManyRedirects": "redirects in a circle",
        "unreachable": "the network is unreachable",
    }.items():
        if sign in text:
            return words
    return "the connection broke"


def _session() -> requests.Session:
    import requests  # late: a finished chain must be recognised in a third of a second

    return requests.Session()


def _digest(url: str) -> str:
    return hashlib.sha256(address.identity(url).encode()).hexdigest()


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


def _read_record(target: Path) -> _Content:
    value: Any = read_json(_record(target))
    try:
        return _Content(**value)
    except TypeError:
        return _Content("")


@contextlib.contextmanager
def _writing(path: Path) -> Any:
    """Give a full disk's error the file's name, which `write` leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
