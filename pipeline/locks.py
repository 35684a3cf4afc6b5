"""One worker at a time on one stage of one run: advisory file locks that die with their holder.

Leaves a small file under `work/locks` that names the holder. The kernel drops the lock when the last process that
inherited it ends, so a lock file left by a dead process is no obstacle. `flock` works across hosts on NFSv4.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import AlreadyRunning
from pipeline.files import read_json
from pipeline.manifest import now


def holder(path: Path) -> dict[str, object] | None:
    """Who holds the lock now (`host`, `pid`, `since`), or None when it is free."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        value = read_json(path)
        return value if isinstance(value, dict) else {"host": "unknown", "pid": 0, "since": "unknown"}
    finally:
        os.close(descriptor)
    return None


def describe(value: dict[str, object]) -> str:
    return f"process {value.get('pid')} on {value.get('host')} since {value.get('since')}"


@contextlib.contextmanager
def hold(path: Path, what: str, wait: bool, waiting: Callable[[str], None] | None = None) -> Iterator[int]:
    """Hold the lock at `path`; gives its file descriptor, to be inherited by the processes that do the work.

    When another live process has it: with `wait` call `waiting` once with a line about who has it and wait,
    else raise `AlreadyRunning`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                other = read_json(path)
                who = describe(other) if isinstance(other, dict) else "another process"
                if not wait:
                    raise AlreadyRunning(f"{what} is already being worked on by {who}; nothing was done") from None
                if waiting and not told:
                    waiting(f"{what}: waiting for {who}")
                    told = True
                time.sleep(0.5)
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": now(), "command": sys.argv[:8]}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(record).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
