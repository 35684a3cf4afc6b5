"""How a stage's process reports: lines for people go to its log, events to its parent."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from pipeline.files import now
from pipeline.text import printable

#: Commands that a running training accepts.
COMMANDS = ("stop", "checkpoint", "stop-after-epoch")

#: Activity of a worker after its last step: publishing may take as long as the disk does, so no progress is expected.
FINISHING = -1


@dataclass
class Reporter:
    """Writes events (one JSON object per line) and the log; holds the commands received."""

    events: TextIO | None = None
    log: TextIO = field(default_factory=lambda: sys.stderr)
    commands: set[str] = field(default_factory=set)
    #: Counter that grows as the stage makes progress; sent with every heartbeat.
    activity: int = 0
    #: Set in all workers but the leader, whose reports they would repeat: send only heartbeats and errors.
    quiet: bool = False
    #: Lines that the parent sent to every process of a multi-process stage.
    broadcasts: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _last: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def progress(self, fraction: float, message: str, **values: Any) -> None:
        """Report the fraction done (0..1) and what the stage is doing, throttled to about five times a second."""
        moment = time.monotonic()
        if not self.quiet and (moment - self._last >= 0.2 or fraction >= 1):
            self._last = moment
            self.send("progress", fraction=round(fraction, 4), message=message, **values)

    def note(self, message: str) -> None:
        """Write a line to the log, with the time in UTC, and send it to the parent."""
        if not self.quiet:
            self.write(message)
            self.send("note", message=message)

    def write(self, message: str) -> None:
        """Write a line to the log only, with the time in UTC."""
        with contextlib.suppress(OSError, ValueError):  # a full disk must not mask the error being logged
            print(f"{now()} {printable(message)}", file=self.log, flush=True)

    def send(self, event: str, **values: Any) -> None:
        """Send an event to the parent, if there is one."""
        if self.events is not None:
            # The parent may be gone, which `child._listen` handles: never fail here.
            with self._lock, contextlib.suppress(OSError, ValueError):
                self.events.write(json.dumps({"event": event, **values}) + "\n")
                self.events.flush()

    def take(self, command: str) -> bool:
        """Whether `command` was received; clears it."""
        if command in self.commands:
            self.commands.discard(command)
            return True
        return False

    @property
    def stopping(self) -> bool:
        """Whether the stage was asked to stop."""
        return "stop" in self.commands
