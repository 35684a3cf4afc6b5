"""Standard streams that are closed, full, or read by nobody: what is written to them is lost, and nothing else is."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO


def forgive() -> None:
    """Let the output of this process go wherever it can; neither its work nor its exit status depends on that."""
    # A closed stream's number would be that of the next file, which would then get what is printed.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout, sys.stderr = _forgiving(1, sys.stdout), _forgiving(2, sys.stderr)


class _Forgiving(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return written
        except OSError:
            return len(data)


def _forgiving(descriptor: int, stream: TextIO | None) -> TextIO:
    raw = _Forgiving(descriptor, "w", closefd=False)
    encoding, errors = (stream.encoding, stream.errors) if stream is not None else ("utf-8", "strict")
    errors = "backslashreplace" if errors == "strict" else errors  # a name that the encoding does not have
    # Python's own standard error, too, is written line by line.
    lines = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=lines)
