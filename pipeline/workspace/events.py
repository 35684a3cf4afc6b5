"""The event log of a workspace: one JSON object per line about what started, finished or failed. Outlives luigid."""

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
    """Append an event. Never raises `OSError`: a log that cannot be written is reported as a warning."""
    line = json.dumps({"time": now(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **about})
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
        # One write in append mode, so that lines of several processes do not mix.
        descriptor = open_regular(workspace.events, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            end = os.fstat(descriptor).st_size
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"  # by a power cut or a full disk
            content = b"\n" * torn + line.encode() + b"\n"
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workspace.events))
    except OSError as error:
        log.warning("event %r was not recorded: %s", event, from_os_error(error, "append to it"))


def read(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the events of all hosts in order. Skips lines that a power cut left unfinished."""
    events = []
    for line in workspace.storage.read_log(workspace.events):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                events.append(value)
    return events


def publish(workspace: Workspace) -> None:
    """Make this host's events visible to others. Anything that fails to upload is retried with the next call."""
    workspace.storage.publish_log(workspace.events, workspace.published_events, workspace.lock("events"))
