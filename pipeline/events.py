"""The event log of a workspace: one JSON object a line, of what started, finished, failed; it outlives luigid."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterable
from typing import Any

from pipeline.errors import PipelineError, from_os_error
from pipeline.files import open_regular, read_regular
from pipeline.manifest import now
from pipeline.workspace import Workspace

log = logging.getLogger("vgg")


def record(workspace: Workspace, event: str, **about: Any) -> None:
    """Append one event. A log that cannot be written must not stop the work that it is about: it is told."""
    line = json.dumps({"time": now(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **about})
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
        # One write in append mode: lines of several processes do not mix.
        descriptor = open_regular(workspace.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("the event %r is not recorded: %s", event, from_os_error(error, "append to it"))


def read(workspace: Workspace) -> list[dict[str, Any]]:
    """All events in order, in a store those of every host; lines that a power cut left unfinished are skipped."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines += read_regular(workspace.events).decode(errors="replace").splitlines()
    if workspace.mirror is None:
        return _parsed(lines)
    store = workspace.mirror.store
    for content in store.read_many(store.find("events")).values():
        lines += content.decode(errors="replace").splitlines()
    return sorted(_parsed(dict.fromkeys(lines)), key=lambda event: str(event.get("time")))


def publish(workspace: Workspace) -> None:
    """Put this host's events of the present hour into the workspace's store, if it is in one: an object an hour."""
    if workspace.mirror is None:
        return
    hour = now()[:13]
    who = hashlib.sha256(str(workspace.root).encode()).hexdigest()[:8]
    with contextlib.suppress(OSError, PipelineError):
        lines = read_regular(workspace.events).decode(errors="replace").splitlines(keepends=True)
        recent = "".join(line for line in lines if f'"time": "{hour}' in line[:40])
        workspace.mirror.store.write(f"events/{hour}-{socket.gethostname()}-{who}.jsonl", recent.encode())


def _parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                events.append(value)
    return events
