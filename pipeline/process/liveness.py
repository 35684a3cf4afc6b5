"""Heartbeats and their monitor, to detect dead processes even on a host that loses power and closes no connection."""

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
from pipeline.text import clock

#: Interval of the heartbeats between a process on another host and its parent. Without one, the parent gives up on the
#: child after CHILD_TIMEOUT, and the child stops after PARENT_TIMEOUT.
HEARTBEAT_SECONDS, CHILD_TIMEOUT, PARENT_TIMEOUT = 5.0, 45.0, 120.0

#: After this long without an event, a training is reported as waiting for a node.
WAITING_SECONDS = 2.0

#: How long a launcher may take to end its job. Slurm gives a job its KillWait, 30 s by default.
END_SECONDS = 45.0


def node_name() -> str:
    """This host's name in the Slurm cluster, else its own host name."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def signal_name(number: int) -> str:
    """Name of a signal: SIGSEGV for 11. Real-time signals have none: "signal 40"."""
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"


def start_heartbeats(reporter: Reporter, seconds: float) -> None:
    """Send a `hello` event, then a heartbeat every `seconds` from a thread."""

    def run() -> None:
        reporter.send("hello", host=node_name(), pid=os.getpid(), job=os.environ.get("SLURM_JOB_ID"))
        while True:
            time.sleep(seconds)
            reporter.send("heartbeat", activity=reporter.activity)

    threading.Thread(target=run, daemon=True).start()


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent exits; send it now if the parent has exited."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def last_line(log: Path, offset: int) -> str:
    """The last non-empty line of a log from `offset` on; empty if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(offset, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Monitor:
    """Watches a child that sends heartbeats, local or behind a launcher, and ends it if it is lost."""

    def __init__(self, launcher: Sequence[str], log: Path) -> None:
        self.launcher, self.log = launcher, log
        self.running = not launcher
        self.lost = False
        self.where = "here"
        self._created = self._last_sent = self._last_received = self._last_call = time.monotonic()
        self._announced = False
        self._end_requested_at: float | None = None
        self._offset = log.stat().st_size if log.exists() else 0

    def filter(self, event: dict[str, Any] | None, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """Consume heartbeats and check the timeout; return the event to pass on, or None."""
        now = time.monotonic()
        if now - self._last_call > HEARTBEAT_SECONDS:  # this process was suspended: heartbeats may be unread
            self._last_received = now
        self._last_call = now
        if event is None:
            self.lost = self.lost or (self.running and now - self._last_received > CHILD_TIMEOUT)
            if self.lost:
                self.end(process)
            return self._waiting(now - self._created)
        self._last_received = now
        if event.get("event") == "hello" and not self.running:
            self.running = True
            self.where = event["host"] + (f" (Slurm job {event['job']})" if event.get("job") else "")
            return {"event": "note", "message": f"started on {self.where}"}
        return None if event.get("event") in ("hello", "heartbeat") else event

    def heartbeat_due(self) -> bool:
        """Whether to send a heartbeat now. Never before the child has started: a queued job may not read for days."""
        now = time.monotonic()
        if not self.running or now - self._last_sent < HEARTBEAT_SECONDS:
            return False
        self._last_sent = now
        return True

    def _waiting(self, seconds: float) -> dict[str, Any] | None:
        if self.running or seconds < WAITING_SECONDS:
            return None
        reason = last_line(self.log, self._offset) or self.launcher[0]
        if not self._announced:
            self._announced = True
            return {"event": "note", "message": f"waiting for a node ({reason})"}
        message = f"waiting for a node for {clock(seconds)} ({reason})"
        return {"event": "progress", "fraction": 0.0, "message": message}

    def failure(self, stage: str, status: int) -> StageFailed | None:
        """The error if the process was lost or never started, else None."""
        if self.lost:
            return StageFailed(
                f"{stage}: no heartbeat from its process on {self.where} for {CHILD_TIMEOUT:.0f} s: the host is dead "
                "or cut off, or the process hangs; run the same command again to resume from the last checkpoint"
            )
        if self.running:
            return None
        return StageFailed(  # show only the launcher's first word: its arguments may contain a token
            f"{stage}: the launcher {self.launcher[0]!r} exited with status {status} before the training started; "
            f"its last line: {last_line(self.log, self._offset) or '(none)'}; log: {self.log}"
        )

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Cancel a training that is still queued. A running one gets the `stop` command instead."""
        if not self.running:
            self.end(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Have the launcher end its job; call repeatedly. SIGKILL is the last resort: it leaves the job behind."""
        now = time.monotonic()
        with contextlib.suppress(OSError):
            if not self.launcher:
                process.kill()
            elif self._end_requested_at is None:
                self._end_requested_at = now
                process.send_signal(signal.SIGTERM if self.running else signal.SIGINT)
            elif now - self._end_requested_at > END_SECONDS:
                process.kill()
