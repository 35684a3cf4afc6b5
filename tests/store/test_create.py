"""Creating objects exclusively, with and without conditional writes, and what a lock records."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import backend, object_locks, store
from pipeline.storage.object_locks import ObjectLock
from pipeline.storage.store import Store


def test_exactly_one_of_several_concurrent_creators_succeeds(tmp_path: Path) -> None:
    stores = [Store(f"file://{tmp_path}/shared", retry_timeout=10) for _ in range(4)]
    start = threading.Barrier(4)

    def create(number: int) -> list[bool]:
        results = []
        for turn in range(50):
            start.wait()
            results.append(stores[number].create(f"lock-{turn}", str(number).encode()))
        return results

    with ThreadPoolExecutor(4) as threads:
        turns = list(zip(*threads.map(create, range(4)), strict=True))
    assert [results.count(True) for results in turns] == [1] * 50
    for turn, results in enumerate(turns):
        assert stores[0].read(f"lock-{turn}") == str(results.index(True)).encode()


def test_without_conditional_writes_the_last_writer_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (Store(f"file://{tmp_path}/shared", retry_timeout=10) for _ in range(2))
    waits: list[float] = []

    def refuse(*about: Any) -> None:
        raise NotImplementedError

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            one.write("b", b"one")  # the other host writes later

    monkeypatch.setattr(backend, "create", refuse)
    monkeypatch.setattr(store.time, "sleep", wait)
    assert one.create("a", b"one")
    assert not two.create("a", b"two")
    assert not two.create("b", b"two")
    assert len(waits) == 2
    assert min(waits) >= store.SETTLE_SECONDS


def test_a_lock_records_when_it_was_acquired_not_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Store(f"file://{tmp_path}/shared")
    shared.write("x.lock", b'{"host": "far", "pid": 1}')
    times = iter(["12:00", "13:00"])
    monkeypatch.setattr(object_locks, "now", lambda: next(times))
    monkeypatch.setattr(object_locks, "POLL_SECONDS", 0)
    with ObjectLock(shared, "x.lock").held("x", True, lambda line: shared.delete(["x.lock"])) as lock:
        record = lock.record()
        assert record is not None
        assert record.since == "13:00"
