"""Fixtures for the tests of the data set stage, built from `small_cifar`."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_cifar import Handler, Recorder, Site

from pipeline.config import from_dict
from pipeline.dataset import download
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain


@pytest.fixture
def reporter() -> Recorder:
    return Recorder()


@pytest.fixture
def chain(tmp_path: Path) -> Callable[..., Chain]:
    """A chain in a fresh workspace: `chain(source, name="mini", classes=4, **data)`."""

    def make(source: object, name: str = "mini", classes: int | None = 4, **data: Any) -> Chain:
        value = {
            "data": {"name": name, "source": str(source), **data},
            "architecture": {"name": "tiny", "conv_arch": [[1, 4]], "classes": classes},
            "training": {"epochs": 1},
        }
        return Chain(Workspace(tmp_path / "artifacts"), from_dict(value))

    return make


@pytest.fixture
def archive(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes as the local archive `mini.tar.gz`."""

    def write(content: bytes) -> Path:
        path = tmp_path / "mini.tar.gz"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.site  # type: ignore[attr-defined]
    finally:
        server.site.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
