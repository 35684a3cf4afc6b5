"""The event log of a workspace: one JSON object a line, of what started, finished, failed; it outlives luigid."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterable
from typing import Any

from pipeline.errors import PipelineError, from_os_error
from pipeline.files import now, open_regular, read_json, read_regular, write_json
from pipeline.storage import locks
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
    """Put this host's events into the workspace's store, if it is in one: an object an hour.

    Those that could not be published before are published with the next ones.
    """
    if workspace.mirror is None:
        return
    with contextlib.suppress(OSError, PipelineError), locks.hold(workspace.lock("events"), "the event log", wait=True):
        lines = read_regular(workspace.events).splitlines(keepends=True)
        known = read_json(workspace.published_events)
        done = known if isinstance(known, int) and 0 <= known <= len(lines) else 0
        for hour in sorted({_hour(line) for line in lines[done:]} - {""}):
            content = b"".join(line for line in lines if _hour(line) == hour)
            workspace.mirror.store.write(f"events/{hour}-{_who(workspace)}.jsonl", content)
        write_json(workspace.published_events, len(lines))


def _hour(line: bytes) -> str:
    """The hour that a line of the log is about, `2026-11-26T15`; "" when it is no line of the log."""
    match = re.match(rb'\{"time": "(\d{4}-\d\d-\d\dT\d\d):', line)
    return match[1].decode() if match else ""


def _who(workspace: Workspace) -> str:
    """This host and its folder: several may share a host name, or a host."""
    return f"{socket.gethostname()}-{hashlib.sha256(str(workspace.root).encode()).hexdigest()[:8]}"


def _parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                events.append(value)
    return events
