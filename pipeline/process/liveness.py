"""Whether a process is still alive: heartbeats from the child, a monitor over the child.

For processes on other hosts, where a host that loses its power closes no connection, and for distributed training.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StageFailed
from pipeline.process.reporter import Reporter

#: A process on another host and its parent send each other a heartbeat this often. The parent takes such a child for
#: dead after CHILD_TIMEOUT without one; the child stops after PARENT_TIMEOUT without one.
HEARTBEAT_SECONDS, CHILD_TIMEOUT, PARENT_TIMEOUT = 5.0, 45.0, 120.0

#: A training is said to wait for a node after so long without an event from it.
WAITING_SECONDS = 2.0

#: How long a launcher may take to end what it started. Slurm gives a job its KillWait, 30 s by default.
END_SECONDS = 45.0


def host_name() -> str:
    """This host as its cluster calls it, else as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def signal_name(number: int) -> str:
    """SIGSEGV for 11; real-time signals have no names."""
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"


def start_heartbeats(reporter: Reporter, seconds: float) -> None:
    """Introduce this process to its parent, then send a heartbeat every so many seconds from a thread."""

    def run() -> None:
        reporter.send("hello", host=host_name(), pid=os.getpid(), job=os.environ.get("SLURM_JOB_ID"))
        while True:
            time.sleep(seconds)
            reporter.send("heartbeat", activity=reporter.activity)

    threading.Thread(target=run, daemon=True).start()


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends, or send it now when it has ended already."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def last_line(log: Path, offset: int = 0) -> str:
    """The last line of a log that is not empty, from `offset` on; an empty one when there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(offset, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Monitor:
    """Follows a child that sends heartbeats, behind a launcher or here: is it started, is it lost, how is it ended."""

    def __init__(self, launcher: Sequence[str], log: Path) -> None:
        self.launcher, self.log = launcher, log
        self.running = not launcher
        self.lost = False
        self.where = "here"
        self._started = self._last_sent = self._last_received = self._last_look = time.monotonic()
        self._told = False
        self._ending: float | None = None
        self._offset = log.stat().st_size if log.exists() else 0

    def attend(self, event: dict[str, Any] | None, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """Take the heartbeats out of the child's events; gives the event to pass on, or None."""
        moment = time.monotonic()
        if moment - self._last_look > HEARTBEAT_SECONDS:  # this process was stopped: heartbeats may be waiting
            self._last_received = moment
        self._last_look = moment
        if event is None:
            self.lost = self.lost or (self.running and moment - self._last_received > CHILD_TIMEOUT)
            if self.lost:
                self.end(process)
            return self._waiting(moment - self._started)
        self._last_received = moment
        if event.get("event") == "hello" and not self.running:
            self.running = True
            self.where = event["host"] + (f" (Slurm job {event['job']})" if event.get("job") else "")
            return {"event": "note", "message": f"started on {self.where}"}
        return None if event.get("event") in ("hello", "heartbeat") else event

    def heartbeat_due(self) -> bool:
        """True when it is time for a heartbeat; not before the child has started: a queued job reads none, for days."""
        moment = time.monotonic()
        if not self.running or moment - self._last_sent < HEARTBEAT_SECONDS:
            return False
        self._last_sent = moment
        return True

    def _waiting(self, seconds: float) -> dict[str, Any] | None:
        if self.running or seconds < WAITING_SECONDS:
            return None
        why = last_line(self.log, self._offset) or self.launcher[0]
        if not self._told:
            self._told = True
            return {"event": "note", "message": f"waiting for a node ({why})"}
        minutes, rest = divmod(int(seconds), 60)
        message = f"waiting for a node for {minutes}:{rest:02} ({why})"
        return {"event": "progress", "fraction": 0.0, "message": message}

    def failure(self, stage: str, status: int) -> StageFailed | None:
        """What went wrong with starting or keeping the process, if something did."""
        if self.lost:
            return StageFailed(
                f"{stage}: no heartbeat from its process on {self.where} for {CHILD_TIMEOUT:.0f} s: the host is dead "
                "or cut off, or the process hangs; run the same command again to resume from the last checkpoint"
            )
        if self.running:
            return None
        return StageFailed(  # with the launcher's first word alone: it can hold a token
            f"{stage}: the launcher {self.launcher[0]!r} ended with status {status} before the training began; "
            f"its last line: {last_line(self.log, self._offset) or '(none)'}; log: {self.log}"
        )

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Take a training that still waits for its node out of the queue; one that runs is asked by command."""
        if not self.running:
            self.end(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Have the launcher end what it started; called until it has. SIGKILL, which leaves a job behind, is last."""
        moment = time.monotonic()
        with contextlib.suppress(OSError):
            if not self.launcher:
                process.kill()
            elif self._ending is None:
                self._ending = moment
                process.send_signal(signal.SIGTERM if self.running else signal.SIGINT)
            elif moment - self._ending > END_SECONDS:
                process.kill()
