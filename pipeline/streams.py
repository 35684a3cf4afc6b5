"""Keep working when standard output or error is closed, full, or has no reader: only that output is lost."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO


def ignore_write_errors() -> None:
    """Make stdout and stderr drop what they cannot write, so that it affects neither the work nor the exit status."""
    # Reserve descriptors 0 to 2: the next file opened would reuse a closed one and receive the output.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout, sys.stderr = _best_effort(1, sys.stdout), _best_effort(2, sys.stderr)


class _BestEffort(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a full non-blocking pipe
                select.select([], [self], [])
            return written
        except OSError:
            return len(data)


def _best_effort(descriptor: int, stream: TextIO | None) -> TextIO:
    raw = _BestEffort(descriptor, "w", closefd=False)
    encoding, errors = (stream.encoding, stream.errors) if stream is not None else ("utf-8", "strict")
    errors = "backslashreplace" if errors == "strict" else errors  # for names outside the encoding
    line_buffering = descriptor == 2 or raw.isatty()  # like Python's own
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=line_buffering)
