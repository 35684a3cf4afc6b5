"""The plugin's log, and what a task answers with. In another program the messages go where Luigi's go."""

from __future__ import annotations

import logging

from pipeline.text import printable

log = logging.getLogger("vgg")
log.parent = logging.getLogger("luigi-interface")


def tell(text: str) -> None:
    """Print what a task answers with; names in it, from files and stores, may hold anything."""
    print(printable(text, lines=True))
