"""Advisory file locks that die with their holder, so that one worker at a time works on a stage of a run.

Leaves a small file under `work/locks` that names the holder. The kernel releases the lock when the last process that
inherited it exits, so the lock file of a dead process blocks nobody. `flock` works across hosts on NFSv4 (Linux 2.6.12
and later pass it to the server); the lock of a vanished host ends with its lease.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pipeline.errors import AlreadyRunning, WorkspaceError
from pipeline.files import now, open_regular, read_json

#: Seconds to wait for the child of a killed command, which still writes its checkpoint.
ENDING_SECONDS = 30.0

#: Seconds to retry a lock that is merely shared: `holder` shares it for a moment to find out whether it is held.
LOOKING_SECONDS = 1.0

#: Errors of `flock` on file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

#: Called with a line about the holder on every poll of a lock.
OnWait = Callable[[str], None]

_AsciiText = Annotated[str, Meta(max_length=255, pattern=r"^[\x20-\x7e]*\Z")]


class Holder(Struct, frozen=True):
    """What a lock's holder records about itself. Records that do not match are ignored."""

    host: _AsciiText = "unknown"
    pid: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    since: _AsciiText = "unknown"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def has_died(self) -> bool:
        """Whether the process ran on this host and is gone. Its children may still hold the lock."""
        return self.host == host_name() and is_gone(self.pid)


def host_name() -> str:
    """Return this host's name as recorded in locks."""
    return ascii(socket.gethostname())[1:-1]


def holder(path: Path) -> Holder | None:
    """Return the holder of a lock, or None if it is free or the file system has no locks."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if try_lock(file.fileno(), path, fcntl.LOCK_SH):
                return None
    except (OSError, WorkspaceError):
        return None
    return _record(path) or Holder()


def _record(path: Path) -> Holder | None:
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(read_json(path), Holder)
    return None


def try_lock(descriptor: int, path: Path, operation: int = fcntl.LOCK_EX) -> bool:
    """Try to lock an open file without blocking. Raises `WorkspaceError` if the file system has no locks."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise WorkspaceError(
            f"{path}: this file system does not lock files ({error.strerror}): mount it with locks (Lustre: -o flock; "
            "NFS: version 4), or choose another --workspace"
        ) from None
    return True


@contextlib.contextmanager
def hold(
    path: Path, what: str, wait: bool, on_wait: OnWait = lambda line: None, timeout: float = math.inf
) -> Iterator[int]:
    """Hold the lock at `path`. Yields its file descriptor, for the processes that do the work to inherit.

    If another live process holds it, raises `AlreadyRunning`: at once, or after `timeout` seconds with `wait`. Always
    waits for the child of a killed holder, which ends by itself. `Workspace.hold` also locks out hosts that do not
    share these files.
    """
    with _locked(path, what, timeout if wait else 0, on_wait, fcntl.LOCK_EX) as descriptor:
        record = Holder(host_name(), os.getpid(), now())
        with contextlib.suppress(OSError):  # the record is informational: commands that free a full disk must work
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, msgspec.json.encode(record), 0)
        yield descriptor


@contextlib.contextmanager
def share(path: Path, what: str) -> Iterator[int]:
    """Share the lock at `path`, so that nobody can `hold` it and move what is being read. Yields its descriptor."""
    with _locked(path, what, ENDING_SECONDS, lambda line: None, fcntl.LOCK_SH) as descriptor:
        yield descriptor


def remove(path: Path) -> None:
    """Remove a lock's file unless it is held or shared. Waiting processes create a new one."""
    with contextlib.suppress(FileNotFoundError), os.fdopen(open_regular(path, os.O_RDWR), "r+b") as file:
        if try_lock(file.fileno(), path) and _is_at(file.fileno(), path):
            path.unlink()


@contextlib.contextmanager
def _locked(path: Path, what: str, timeout: float, on_wait: OnWait, operation: int) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
            _acquire(file.fileno(), path, what, timeout, on_wait, operation)
            if _is_at(file.fileno(), path):
                yield file.fileno()
                return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still at its path: see `remove`."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _acquire(descriptor: int, path: Path, what: str, timeout: float, on_wait: OnWait, operation: int) -> None:
    started = time.monotonic()
    while not try_lock(descriptor, path, operation):
        waited = time.monotonic() - started
        if try_lock(descriptor, path, fcntl.LOCK_SH):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            if waited >= max(timeout, LOOKING_SECONDS):
                raise AlreadyRunning(f"{what} is in use by a running stage; nothing was done")
            time.sleep(random.uniform(0.001, 0.02))  # jitter: two processes must not collide again and again
            continue
        other = _record(path)
        who = other or "another process"
        # Without a record, the holder has just acquired the lock and is about to write one.
        ending = other is None or other.has_died
        if waited >= timeout and not (ending and waited < ENDING_SECONDS):
            raise AlreadyRunning(f"{what} is already being worked on by {who}; nothing was done")
        state = f"{who} has died; waiting for its child process to exit" if ending else f"waiting for {who}"
        if other:
            on_wait(f"{what}: {state}")
        time.sleep(0.2 if ending else 0.5)


def is_gone(pid: object) -> bool:
    """Whether no process of this number is alive on this host. A zombie does not count as alive."""
    try:
        number = int(str(pid))
    except ValueError:
        return True
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{number}/stat", "rb") as file:  # a name is any bytes
        return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    try:  # /proc may hide other users' processes
        os.kill(number, 0)
    except PermissionError:
        return False
    except (OSError, OverflowError):
        return True
    return number <= 0  # those mean groups of processes
