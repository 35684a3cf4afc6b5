"""Fixtures: a real S3 server behind a proxy, a bucket per test, hosts that share it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from luigi_runs import small_archive
from s3_server import Proxy, environment, s3_server
from store_hosts import Bucket, Host

_numbers = itertools.count()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of an S3 server."""
    for module in ("s3fs", "moto", "flask"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install s3fs 'moto[server]'")
    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        found = Proxy(port)
        yield found
        found.close()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "mini.tar.gz")


@pytest.fixture
def in_reach(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The proxy, with credentials for its server in this process."""
    import s3fs

    for name, value in environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps one for all servers, which are another for each module
    return proxy


@pytest.fixture
def bucket(proxy: Proxy) -> Bucket:
    """A new bucket for each test."""
    proxy.quiet()
    return Bucket(proxy.target, f"bucket-{next(_numbers)}")


@pytest.fixture
def host(proxy: Proxy, bucket: Bucket, archive: Path, tmp_path: Path) -> Callable[..., Host]:
    """`host("one")` is a host that shares the test's bucket."""
    return lambda name, **settings: Host(tmp_path / name, bucket.url, proxy, archive, **settings)
