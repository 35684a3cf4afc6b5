"""Who is first to make an object, where the store has no conditional writes, and what a lock made so says."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import backend, object_locks, store
from pipeline.storage.object_locks import ObjectLock
from pipeline.storage.store import Store


def test_of_several_creators_at_once_exactly_one_is_first(tmp_path: Path) -> None:
    stores = [Store(f"file://{tmp_path}/shared", retry_timeout=10) for _ in range(4)]
    start = threading.Barrier(4)

    def create(number: int) -> list[bool]:
        found = []
        for turn in range(50):
            start.wait()
            found.append(stores[number].create(f"lock-{turn}", str(number).encode()))
        return found

    with ThreadPoolExecutor(4) as threads:
        turns = list(zip(*threads.map(create, range(4)), strict=True))
    assert [found.count(True) for found in turns] == [1] * 50
    for turn, found in enumerate(turns):
        assert stores[0].read(f"lock-{turn}") == str(found.index(True)).encode()


def test_a_back_end_without_such_writes_looks_again_who_was_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (Store(f"file://{tmp_path}/shared", retry_timeout=10) for _ in range(2))
    waits: list[float] = []

    def refuse(*about: Any) -> None:
        raise NotImplementedError

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            one.write("b", b"one")  # the other one was later

    monkeypatch.setattr(backend, "create", refuse)
    monkeypatch.setattr(store.time, "sleep", wait)
    assert one.create("a", b"one")
    assert not two.create("a", b"two")
    assert not two.create("b", b"two")
    assert len(waits) == 2
    assert min(waits) >= store.SETTLE_SECONDS


def test_a_lock_that_was_waited_for_says_since_when_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Store(f"file://{tmp_path}/shared")
    shared.write("x.lock", b'{"host": "far", "pid": 1}')
    times = iter(["12:00", "13:00"])
    monkeypatch.setattr(object_locks, "now", lambda: next(times))
    monkeypatch.setattr(object_locks, "POLL_SECONDS", 0)
    with ObjectLock(shared, "x.lock").held("x", True, lambda line: shared.delete(["x.lock"])) as lock:
        record = lock.record()
        assert record is not None
        assert record.since == "13:00"
