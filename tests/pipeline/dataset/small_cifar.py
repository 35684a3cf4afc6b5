"""Small data sets, archives of every kind, and a web server that misbehaves on request."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import pickle
import re
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

NAMES = ("cat", "dog", "owl", "fox")


@dataclass
class Recorder:
    """A reporter that records its calls."""

    notes: list[str] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)

    def progress(self, fraction: float, message: str) -> None:
        self.fractions.append(fraction)

    def note(self, message: str) -> None:
        assert "\n" not in message
        self.notes.append(message)


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fail if the block ever allocates more than `limit` bytes in Python and numpy."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def records(count: int, seed: int, classes: int = len(NAMES)) -> bytes:
    """Return `count` records of random pixels, labelled 0, 1, 2, … in turn."""
    rows = np.random.RandomState(seed).randint(0, 256, (count, 3073)).astype(np.uint8)
    rows[:, 0] = np.arange(count) % classes
    return rows.tobytes()


def mini_files(batches: int = 2, images: int = 12) -> dict[str, bytes]:
    """A small data set in the binary layout: file name -> content."""
    files = {"batches.meta.txt": "".join(f"{name}\n" for name in NAMES).encode() + b"\n"}
    files |= {f"data_batch_{n}.bin": records(images, n) for n in range(1, batches + 1)}
    return {**files, "test_batch.bin": records(8, 99)}


def python_files(binary: dict[str, bytes], protocol: int = 2) -> dict[str, bytes]:
    """The same data set in the python layout."""
    files = {"batches.meta": pickle.dumps({"label_names": list(NAMES), "num_vis": 3072}, protocol)}
    for name, content in binary.items():
        if name.endswith(".bin"):
            rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
            value = {b"data": rows[:, 1:].copy(), b"labels": rows[:, 0].tolist(), b"batch_label": b"a batch"}
            files[name[: -len(".bin")]] = pickle.dumps(value, protocol)
    return files


NAMES_100 = tuple(f"fine_{label}" for label in range(100))


def mini_100_files(train: int = 200, test: int = 100) -> dict[str, bytes]:
    """A small data set in CIFAR-100's binary layout: a coarse label, a fine one, the pixels."""
    files = {"coarse_label_names.txt": b"".join(b"coarse_%d\n" % label for label in range(20))}
    files["fine_label_names.txt"] = "".join(f"{name}\n" for name in NAMES_100).encode()
    for seed, (name, count) in enumerate({"train": train, "test": test}.items()):
        rows = np.random.RandomState(seed).randint(0, 256, (count, 3074)).astype(np.uint8)
        rows[:, 1] = np.arange(count) % 100
        rows[:, 0] = rows[:, 1] // 5
        files[f"{name}.bin"] = rows.tobytes()
    return files


def python_100_files(binary: dict[str, bytes]) -> dict[str, bytes]:
    """The same data set in CIFAR-100's python layout."""
    meta = {"fine_label_names": list(NAMES_100), "coarse_label_names": [f"coarse_{label}" for label in range(20)]}
    files = {"meta": pickle.dumps(meta, 2), "file.txt~": b""}
    for name in ("train", "test"):
        rows = np.frombuffer(binary[f"{name}.bin"], np.uint8).reshape(-1, 3074)
        value = {
            b"filenames": [b"image_%d.png" % number for number in range(len(rows))],
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": rows[:, 1].tolist(),
            b"coarse_labels": rows[:, 0].tolist(),
            b"data": rows[:, 2:].copy(),
        }
        files[name] = pickle.dumps(value, 2)
    return files


Member = tuple[tarfile.TarInfo, bytes]


def plain(name: str, content: bytes) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def tar(members: list[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_gz(files: dict[str, bytes], *more: Member) -> bytes:
    """A gzipped tar of `files` in a folder, then of `more` members."""
    members = [special("cifar-10-batches-bin", tarfile.DIRTYPE)]
    members += [plain(f"cifar-10-batches-bin/{name}", content) for name, content in files.items()]
    return gzip.compress(tar([*members, *more]), 1, mtime=0)


@dataclass
class Site:
    """A real web server on loopback. `pages` maps a path to its content; the other attributes make it misbehave."""

    address: str
    pages: dict[str, bytes] = field(default_factory=dict)
    #: Bytes after which the connection is cut; each request consumes one entry.
    cuts: list[int] = field(default_factory=list)
    #: Status codes returned instead of the content; each request consumes one.
    answers: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: bool = True
    #: Sent as Content-Length instead of the true length.
    length: str | None = None
    #: Set when the test is over, to stop dripping responses.
    over: threading.Event = field(default_factory=threading.Event)
    #: (path, Range header, status) of every request so far.
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)

    def url(self, path: str = "/mini.tar.gz") -> str:
        return self.address + path


#: Endless responses that send a byte now and then.
DRIPPING = {
    "/slow-headers": b"HTTP/1.0 200 OK\r\nX-Long: ",
    "/slow-body": b"HTTP/1.0 200 OK\r\n\r\n",
    "/moved": b"HTTP/1.0 302 Found\r\nLocation: /mini.tar.gz\r\n\r\n",
    "/moved-to-ftp": b"HTTP/1.0 302 Found\r\nLocation: ftp://host/mini.tar.gz\r\n\r\n",
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        if self.path in DRIPPING:
            site.requests.append((self.path, self.headers.get("Range"), int(DRIPPING[self.path][9:12])))
            return self._drip(site, DRIPPING[self.path])
        content = site.pages.get(self.path.partition("?")[0])
        wanted = self.headers.get("Range")
        status = site.answers.pop(0) if site.answers else 404 if content is None else 200
        etag = f'"{hashlib.sha256(content or b"").hexdigest()[:8]}"'
        start = 0
        fresh = self.headers.get("If-Range") in (None, etag)
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "") if site.ranges and fresh else None
        if status == 200 and match:
            start, status = int(match[1]), 206
        site.requests.append((self.path, wanted, status))
        body = (content or b"")[start:] if status in (200, 206) else b"sorry"
        self.send_response(status)
        self.send_header("Content-Length", site.length or str(len(body)))
        if site.etag:
            self.send_header("ETag", etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content or b'') - 1}/{len(content or b'')}")
        self.end_headers()
        if site.cuts:
            body = body[: site.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def _drip(self, site: Site, start: bytes) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(start)
            while not site.over.wait(0.02):
                self.wfile.write(b"x")

    def log_message(self, *arguments: object) -> None: ...
