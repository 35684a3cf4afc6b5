"""The two pipes to a stage's process: lines in, events out."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
from collections.abc import Iterator
from typing import Any

#: What a stage's process says; a launcher may print JSON, too.
EVENTS = ("hello", "heartbeat", "progress", "note", "broadcast", "finishing", "result", "error")


def events(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """The child's events as they come, and None a few times a second in between, until its output ends."""
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
                    return  # ended, while something that it started still holds the pipe
                continue
            block = os.read(descriptor, 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(line)
                    if isinstance(value, dict) and value.get("event") in EVENTS:
                        yield value


class Input:
    """The child's standard input. Never blocks: a launcher may pass nothing on while its job is queued."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        self._descriptor = child.stdin.fileno()
        os.set_blocking(self._descriptor, False)
        self._rest = b""

    def send(self, line: str) -> None:
        """Write a line, now or as soon as there is room for it."""
        self._rest += line.encode() + b"\n"
        self.flush()

    def heartbeat(self) -> None:
        """Write an empty line, unless others are still unread."""
        if not self._rest:
            self.send("")

    def flush(self) -> None:
        """Write as much as there is room for."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BlockingIOError:
            pass
        except OSError:  # it has ended in the meantime
            self._rest = b""
