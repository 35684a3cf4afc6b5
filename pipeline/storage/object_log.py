"""The event log of a workspace in a store: one object per hour and host, as objects cannot be appended to."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path

from pipeline.files import read_json, read_regular, write_json
from pipeline.storage.store import Store

FOLDER = "events"


def published_lines(store: Store) -> list[str]:
    """Return the lines of all hosts, unordered."""
    contents = store.read_many(store.only_small(store.find(FOLDER))).values()
    return [line for content in contents for line in content.decode(errors="replace").splitlines()]


def publish_log(store: Store, log: Path, progress: Path) -> None:
    """Upload the hours of this host's log that have new lines; the file `progress` holds how many are published.

    Lines that failed to upload are retried with the next call. Raises `OSError`, `PipelineError`.
    """
    lines = read_regular(log).splitlines(keepends=True)
    known = read_json(progress)
    done = known if isinstance(known, int) and 0 <= known <= len(lines) else 0
    for hour in sorted({_hour(line) for line in lines[done:]} - {""}):
        key = f"{FOLDER}/{hour}-{_who(log.parent)}.jsonl"
        before = (store.read(key) or b"").splitlines(keepends=True)  # may come from a local folder deleted since
        ours = (line for line in lines if _hour(line) == hour)
        store.write(key, b"".join(dict.fromkeys([*before, *ours])))
    write_json(progress, len(lines))


def _hour(line: bytes) -> str:
    """Return the hour of a line of the log, such as `2026-11-26T15`; empty if it is malformed."""
    match = re.match(rb'\{"time": "(\d{4}-\d\d-\d\dT\d\d):', line)
    return match[1].decode() if match else ""


def _who(root: Path) -> str:
    """Identify this host and folder: several hosts may share a name, and several folders a host."""
    return f"{socket.gethostname()}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
