"""One worker at a time on a stage, across hosts that share nothing but a store: a small object that says who has it.

The object is created by a conditional write where the store has them; its holder writes it anew every few seconds. A
holder that has not done so for the store's `stale_seconds` (by the store's clock) counts as dead, and so does one on
this machine whose process is gone: the next one takes over. A holder that was only cut off finds out before it
publishes anything.
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
from pipeline.storage.locks import Holder, Waiting, host_name, is_gone
from pipeline.storage.store import SETTLE_SECONDS, Store

#: Where the locks are in a store.
LOCKS = "work/locks"

#: Seconds after a failed heartbeat until the next one.
AGAIN_SECONDS = 1.0

#: Seconds between two looks at a lock that is waited for.
POLL_SECONDS = 2.0


class _Record(Holder, frozen=True):
    """What is in the object. One that no holder wrote counts until it is stale."""

    machine: str = ""
    token: str = ""
    beat: float = 0
    stale_after: float | None = None


class ObjectLock:
    """The lock at `key` of a store. `lost` is True once another host was found to have taken it over."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.token = uuid.uuid4().hex
        self.lost = False
        self._since = ""
        self._ended = threading.Event()
        self._written = threading.Lock()

    @contextlib.contextmanager
    def held(self, what: str, wait: bool, waiting: Waiting) -> Iterator[ObjectLock]:
        """Hold the lock; with `wait` wait for who has it, else raise `AlreadyRunning`."""
        self._acquire(what, wait, waiting)
        heartbeat = threading.Thread(target=self._heartbeat, name="lock heartbeat", daemon=True)
        heartbeat.start()
        try:
            yield self
        finally:
            self._ended.set()
            with self._written, contextlib.suppress(PipelineError):  # else it becomes stale
                if self.still_ours():
                    self.store.delete([self.key])

    def record(self) -> _Record | None:
        """What the lock's holder wrote, or None when nobody has it."""
        content = self.store.read(self.key)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=_Record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _Record()

    def still_ours(self) -> bool:
        """True unless another host has taken the lock over; asks the store."""
        self.lost = self.lost or not self._is_ours()
        return not self.lost

    def _is_ours(self) -> bool:
        record = self.record()
        return record is not None and record.token == self.token

    def _acquire(self, what: str, wait: bool, waiting: Waiting) -> None:
        while True:
            self._since = now()
            if self.store.create(self.key, self._content()):
                return
            other = self.record()
            if other is None:
                continue
            if self._is_dead(other):
                # What was written meanwhile, by its holder or by who took it over, stands.
                if self.record() == other and self._take_over():
                    return
                continue
            if not wait:
                raise AlreadyRunning(f"{what} is already being worked on by {other}; nothing was done")
            waiting(f"{what}: waiting for {other}")
            time.sleep(POLL_SECONDS)

    def _is_dead(self, other: _Record) -> bool:
        if other.machine and other.machine == _machine() and is_gone(other.pid):
            return True
        age = self.store.age(self.key, f"{self.key}.{self.token}")
        if age is None:
            age = time.time() - other.beat
        return age > (self.store.stale_seconds if other.stale_after is None else other.stale_after)

    def _take_over(self) -> bool:
        """Write over a dead holder's record; of several that do so at once, the last one has the lock.

        One whose write comes later than SETTLE_SECONDS after another's takes the lock from that one, which finds out
        with its next heartbeat, and before it publishes anything.
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
        """Write the lock anew, so often that an outage as long as `retry_timeout` does not make it stale."""
        regular = self.store.stale_seconds / 6
        pause = regular
        while not self._ended.wait(pause):
            with self._written:
                try:
                    if self._ended.is_set() or not self.still_ours():
                        return
                    self.store.write(self.key, self._content())
                    pause = regular
                except PipelineError:  # the store is away: others must hear of this host as soon as it is back
                    pause = min(regular, AGAIN_SECONDS)


def _machine() -> str:
    """This machine since it was started, and which processes are seen here: where a process number means something."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
