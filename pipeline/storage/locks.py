"""One worker at a time on one stage of one run: advisory file locks that die with their holder.

Leaves a small file under `work/locks` that names the holder. The kernel drops the lock when the last process that
inherited it ends, so a lock file left by a dead process is no obstacle. `flock` works across hosts on NFSv4 (Linux
2.6.12 and later hand it to the server); there, too, the lock of a host that is gone ends with its lease.
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

#: Seconds to wait for the last process of a command that was killed: it still writes its checkpoint.
ENDING_SECONDS = 30.0

#: For how long a lock that is only shared is tried again: who looks at it with `holder` shares it for a moment.
LOOKING_SECONDS = 1.0

#: What `flock` answers on a file system that has none.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

#: What is called, at every look at a lock that is waited for, with a line about who has it.
Waiting = Callable[[str], None]

#: Text that can be shown.
_Text = Annotated[str, Meta(max_length=255, pattern=r"^[\x20-\x7e]*\Z")]


class Holder(Struct, frozen=True):
    """What a lock's holder writes of itself. A record with other types was not written by a holder."""

    host: _Text = "unknown"
    pid: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    since: _Text = "unknown"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def has_died(self) -> bool:
        """True for a process of this host that is no more; a process that it started may still hold the lock."""
        return self.host == host_name() and is_gone(self.pid)


def host_name() -> str:
    """This host's name as a holder writes it."""
    return ascii(socket.gethostname())[1:-1]


def holder(path: Path) -> Holder | None:
    """Who holds the lock now, or None when it is free or this file system has no locks.

    Looks by sharing the lock for a moment, which `hold` tells from holding it.
    """
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
    """Lock an open file if that is possible now. Raises `WorkspaceError` when its file system has no locks."""
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
    path: Path, what: str, wait: bool, waiting: Waiting = lambda line: None, at_most: float = math.inf
) -> Iterator[int]:
    """Hold the lock at `path`; gives its file descriptor, to be inherited by the processes that do the work.

    When another live process has it: with `wait` wait for at most `at_most` seconds, else raise `AlreadyRunning`. A
    holder that was killed is waited for in any case: its child ends by itself. `Workspace.hold` also holds the lock
    against hosts that have other files.
    """
    with _locked(path, what, at_most if wait else 0, waiting, fcntl.LOCK_EX) as descriptor:
        record = Holder(host_name(), os.getpid(), now())
        with contextlib.suppress(OSError):  # the record is only for people, and a full disk is to be made room on
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, msgspec.json.encode(record), 0)
        yield descriptor


@contextlib.contextmanager
def share(path: Path, what: str) -> Iterator[int]:
    """Hold the lock at `path` beside others that share it; gives its file descriptor.

    For what is read for a while and must not be moved meanwhile: `hold` gets the lock when nobody shares it any more.
    """
    with _locked(path, what, ENDING_SECONDS, lambda line: None, fcntl.LOCK_SH) as descriptor:
        yield descriptor


def remove(path: Path) -> None:
    """Remove a lock's file unless it is held or shared. Who waits for it makes a new one."""
    with contextlib.suppress(FileNotFoundError), os.fdopen(open_regular(path, os.O_RDWR), "r+b") as file:
        if try_lock(file.fileno(), path) and _is_at(file.fileno(), path):
            path.unlink()


@contextlib.contextmanager
def _locked(path: Path, what: str, at_most: float, waiting: Waiting, operation: int) -> Iterator[int]:
    """The file of a lock, opened and locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
            _acquire(file.fileno(), path, what, at_most, waiting, operation)
            if _is_at(file.fileno(), path):
                yield file.fileno()
                return


def _is_at(descriptor: int, path: Path) -> bool:
    """False for an open file that is not at its path any more: see `remove`."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _acquire(descriptor: int, path: Path, what: str, at_most: float, waiting: Waiting, operation: int) -> None:
    started = time.monotonic()
    while not try_lock(descriptor, path, operation):
        waited = time.monotonic() - started
        if try_lock(descriptor, path, fcntl.LOCK_SH):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            if waited >= max(at_most, LOOKING_SECONDS):
                raise AlreadyRunning(f"{what} is in use by a running stage; nothing was done")
            time.sleep(random.uniform(0.001, 0.02))  # two that try at once must not meet again and again
            continue
        other = _record(path)
        who = other or "another process"
        # Without a record its holder has got the lock this very moment and will say so in the next one.
        ending = other is None or other.has_died
        if waited >= at_most and not (ending and waited < ENDING_SECONDS):
            raise AlreadyRunning(f"{what} is already being worked on by {who}; nothing was done")
        state = f"{who} has died; waiting for its child process to exit" if ending else f"waiting for {who}"
        if other:
            waiting(f"{what}: {state}")
        time.sleep(0.2 if ending else 0.5)


def is_gone(pid: object) -> bool:
    """True when no process of this number is alive on this host (one that nobody has waited for counts as gone)."""
    try:
        number = int(str(pid))
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
    except (OSError, ValueError, IndexError):
        pass
    try:  # /proc may hide another user's
        os.kill(int(str(pid)), 0)
    except PermissionError:
        return False
    except (OSError, ValueError, OverflowError):
        pass
    return True
