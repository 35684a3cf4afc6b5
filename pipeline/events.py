"""The event log of a workspace: one JSON object a line, of what started, finished, failed; it outlives luigid."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

from pipeline.manifest import now
from pipeline.workspace import Workspace


def record(workspace: Workspace, event: str, **about: Any) -> None:
    """Append one event. A log that cannot be written must not stop the work that it is about."""
    line = json.dumps({"time": now(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **about})
    with contextlib.suppress(OSError):
        workspace.root.mkdir(parents=True, exist_ok=True)
        # One write in append mode: lines of several processes do not mix.
        descriptor = os.open(workspace.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


def read(workspace: Workspace) -> list[dict[str, Any]]:
    """All events in order; lines that a power cut left unfinished are skipped."""
    events = []
    with contextlib.suppress(OSError):
        for line in workspace.events.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    events.append(value)
    return events
