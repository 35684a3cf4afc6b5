"""The two pipes to a stage's process: commands in, events out."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
from collections.abc import Iterator
from typing import Any

#: Events of a stage's process and their required fields. Any other JSON is ignored: a launcher may print some.
EVENTS: dict[str, dict[str, Any]] = {
    "hello": {"host": str},
    "heartbeat": {"activity": int},
    "progress": {"fraction": int | float, "message": str},
    "note": {"message": str},
    "broadcast": {"line": str},
    "finishing": {},
    "result": {"value": dict},
    "error": {"type": str, "message": str},
}


def events(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """Yield the child's events as they arrive, and None a few times a second, until its output ends."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    os.set_blocking(descriptor, False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            ready = selector.select(timeout=0.2)
            if not ready:
                yield None
                if child.poll() is not None and not selector.select(timeout=0):
                    return  # it exited, but a descendant still holds the pipe open
                continue
            block = os.read(descriptor, 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(line)
                    if _is_event(value):
                        yield value


def _is_event(value: Any) -> bool:
    # A list, as `in` a dict raises for an unhashable value.
    if not isinstance(value, dict) or value.get("event") not in list(EVENTS):
        return False
    return all(isinstance(value.get(field), kind) for field, kind in EVENTS[value["event"]].items())


class Input:
    """The child's standard input. Never blocks: a launcher may not read it while its job is queued."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        self._descriptor = child.stdin.fileno()
        os.set_blocking(self._descriptor, False)
        self._buffer = b""

    def send(self, line: str) -> None:
        """Write a line; what does not fit into the pipe is buffered until the next `flush`."""
        self._buffer += line.encode() + b"\n"
        self.flush()

    def heartbeat(self) -> None:
        """Write an empty line, unless earlier lines are still buffered."""
        if not self._buffer:
            self.send("")

    def flush(self) -> None:
        """Write as much of the buffer as fits into the pipe."""
        try:
            while self._buffer:
                self._buffer = self._buffer[os.write(self._descriptor, self._buffer) :]
        except BlockingIOError:
            pass
        except OSError:  # the child has exited
            self._buffer = b""
