"""Locks across hosts that share nothing but a store: a small object that names the holder.

The object is created by a conditional write, if the store has them, and rewritten every few seconds as a heartbeat. A
lock is stale after `stale_seconds` without one (by the store's clock), or when its process on this machine is gone; the
next host then takes it over. A holder that was only cut off notices before it publishes anything.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator

import msgspec

from pipeline.errors import AlreadyRunning, PipelineError
from pipeline.files import now
from pipeline.storage.locks import Holder, OnWait, host_name, is_gone
from pipeline.storage.store import SETTLE_SECONDS, Store

#: Folder of the locks in a store.
LOCKS = "work/locks"

#: Seconds until a failed heartbeat is retried.
RETRY_SECONDS = 1.0

#: Seconds between polls of a lock that somebody else holds.
POLL_SECONDS = 2.0


class _Record(Holder, frozen=True):
    """Content of the object. A malformed one still locks until it is stale."""

    machine: str = ""
    token: str = ""
    beat: float = 0
    stale_after: float | None = None


class ObjectLock:
    """The lock at `key` of a store. `lost` is set once this process notices that another host took it over."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.token = uuid.uuid4().hex
        self.lost = False
        self._since = ""
        self._ended = threading.Event()
        self._write_lock = threading.Lock()

    @contextlib.contextmanager
    def held(self, what: str, wait: bool, on_wait: OnWait) -> Iterator[ObjectLock]:
        """Hold the lock. If it is taken, wait for it with `wait`, else raise `AlreadyRunning`."""
        self._acquire(what, wait, on_wait)
        heartbeat = threading.Thread(target=self._heartbeat, name="lock heartbeat", daemon=True)
        heartbeat.start()
        try:
            yield self
        finally:
            self._ended.set()
            with self._write_lock, contextlib.suppress(PipelineError):  # on failure the lock becomes stale
                if self.still_ours():
                    self.store.delete([self.key])

    def record(self) -> _Record | None:
        """Return the holder's record, or None if the lock is free."""
        content = self.store.read(self.key)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=_Record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _Record()

    def still_ours(self) -> bool:
        """Ask the store whether this process still holds the lock."""
        self.lost = self.lost or not self._is_ours()
        return not self.lost

    def _is_ours(self) -> bool:
        record = self.record()
        return record is not None and record.token == self.token

    def _acquire(self, what: str, wait: bool, on_wait: OnWait) -> None:
        while True:
            self._since = now()
            if self.store.create(self.key, self._content()):
                return
            other = self.record()
            if other is None:
                continue
            if self._is_dead(other):
                # Check again: its holder, or another host that took over, may have written since.
                if self.record() == other and self._take_over():
                    return
                continue
            if not wait:
                raise AlreadyRunning(f"{what} is already being worked on by {other}; nothing was done")
            on_wait(f"{what}: waiting for {other}")
            time.sleep(POLL_SECONDS)

    def _is_dead(self, other: _Record) -> bool:
        if other.machine and other.machine == _machine() and is_gone(other.pid):
            return True
        age = self.store.age(self.key, f"{self.key}.{self.token}")
        if age is None:
            age = time.time() - other.beat
        return age > (self.store.stale_seconds if other.stale_after is None else other.stale_after)

    def _take_over(self) -> bool:
        """Overwrite a dead holder's record. If several hosts do so at once, the last one gets the lock.

        A host that writes more than SETTLE_SECONDS after another takes the lock from it; the other notices at its next
        heartbeat, and before it publishes anything.
        """
        self.store.write(self.key, self._content())
        time.sleep(SETTLE_SECONDS * random.uniform(1, 1.5))
        return self._is_ours()

    def _content(self) -> bytes:
        record = _Record(
            host=host_name(),
            pid=os.getpid(),
            since=self._since,
            machine=_machine(),
            token=self.token,
            beat=round(time.time(), 1),
            stale_after=self.store.stale_seconds,
        )
        return msgspec.json.encode(record)

    def _heartbeat(self) -> None:
        """Rewrite the lock often enough that an outage of `retry_timeout` does not make it stale."""
        regular = self.store.stale_seconds / 6
        pause = regular
        while not self._ended.wait(pause):
            with self._write_lock:
                try:
                    if self._ended.is_set() or not self.still_ours():
                        return
                    self.store.write(self.key, self._content())
                    pause = regular
                except PipelineError:  # an outage: beat as soon as the store is back
                    pause = min(regular, RETRY_SECONDS)


def _machine() -> str:
    """Identify the boot of this machine and the PID namespace, in which a process number is meaningful."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
