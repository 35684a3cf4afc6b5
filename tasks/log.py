"""The plugin's logger, and its standard output. In other programs the logger inherits from Luigi's."""

from __future__ import annotations

import logging

from pipeline.text import printable

log = logging.getLogger("vgg")
log.parent = logging.getLogger("luigi-interface")


def echo(text: str) -> None:
    """Print a task's output, with control characters escaped: names from files and stores may contain anything."""
    print(printable(text, lines=True), flush=True)  # complete even if the command is killed while it notifies
