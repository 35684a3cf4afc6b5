"""How a stage's process tells what it does: lines for people go to its log, events to its parent."""

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

#: Commands that a running training understands.
COMMANDS = ("stop", "checkpoint", "stop-after-epoch")

#: The activity of a process that has done its steps and may now take as long as its disk does.
FINISHING = -1


@dataclass
class Reporter:
    """Writes events (a JSON object per line) and the log. Holds the commands that have come."""

    events: TextIO | None = None
    log: TextIO = field(default_factory=lambda: sys.stderr)
    commands: set[str] = field(default_factory=set)
    #: Grows with all that the stage gets done; sent with every heartbeat.
    activity: int = 0
    #: Set in all workers but the leader, which would say the same: only heartbeats and errors are sent.
    quiet: bool = False
    #: What the parent has sent to all processes of a stage that runs in several.
    broadcasts: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _last: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def progress(self, fraction: float, message: str, **values: Any) -> None:
        """Report how far the stage is (0..1) and what it is doing; at most about five a second get through."""
        moment = time.monotonic()
        if not self.quiet and (moment - self._last >= 0.2 or fraction >= 1):
            self._last = moment
            self.send("progress", fraction=round(fraction, 4), message=message, **values)

    def note(self, message: str) -> None:
        """A line for people: into the log with the time in UTC, and to the parent."""
        if not self.quiet:
            self.write(message)
            self.send("note", message=message)

    def write(self, message: str) -> None:
        """A line into the log alone, with the time in UTC."""
        with contextlib.suppress(OSError, ValueError):  # a full disk must not turn into another error
            print(f"{now()} {printable(message)}", file=self.log, flush=True)

    def send(self, event: str, **values: Any) -> None:
        """An event to the parent, if there is one."""
        if self.events is not None:
            # The parent may be gone; that must not break what is running, see `child._listen`.
            with self._lock, contextlib.suppress(OSError, ValueError):
                self.events.write(json.dumps({"event": event, **values}) + "\n")
                self.events.flush()

    def take(self, command: str) -> bool:
        """True once for each time that `command` was given."""
        if command in self.commands:
            self.commands.discard(command)
            return True
        return False

    @property
    def stopping(self) -> bool:
        """True once the stage was asked to stop."""
        return "stop" in self.commands
