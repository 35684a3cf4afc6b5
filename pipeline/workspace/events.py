"""The event log of a workspace: one JSON object a line, of what started, finished, failed; it outlives luigid."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from typing import Any

from pipeline.errors import from_os_error
from pipeline.files import now, open_regular
from pipeline.workspace.paths import Workspace

log = logging.getLogger("vgg")


def record(workspace: Workspace, event: str, **about: Any) -> None:
    """Append one event. A log that cannot be written must not stop the work that it is about: it is told."""
    line = json.dumps({"time": now(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **about})
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
        # One write in append mode: lines of several processes do not mix.
        descriptor = open_regular(workspace.events, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            end = os.fstat(descriptor).st_size
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"  # by a power cut, or a full disk
            content = b"\n" * torn + line.encode() + b"\n"
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workspace.events))
    except OSError as error:
        log.warning("the event %r is not recorded: %s", event, from_os_error(error, "append to it"))


def read(workspace: Workspace) -> list[dict[str, Any]]:
    """All events in order, those of every host; lines that a power cut left unfinished are skipped."""
    events = []
    for line in workspace.storage.read_log(workspace.events):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                events.append(value)
    return events


def publish(workspace: Workspace) -> None:
    """Let other hosts see this host's events. Those that could not be published are published with the next ones."""
    workspace.storage.publish_log(workspace.events, workspace.published_events, workspace.lock("events"))
