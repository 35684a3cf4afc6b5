"""Text for people: counts with their nouns, and untrusted text (metadata, library errors) made safe to print."""

from __future__ import annotations

import unicodedata


def counted(number: int, noun: str) -> str:
    """Format a count with its noun: `1 thread`, `2 threads`, `71,000 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str, lines: bool = False) -> str:
    """Replace whatever a terminal could act on (control codes, bidi overrides, lone surrogates) by `?`.

    Line breaks and tabs become spaces unless `lines` is set.
    """
    if text.isprintable():
        return text
    return "".join(_printable(letter, lines) for letter in text)


def shown(name: str) -> str:
    """Make a name safe to print: one line of at most 80 characters."""
    text = printable(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def clock(seconds: float) -> str:
    """Format a duration: `1:15`, `2:02:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def cause(error: BaseException) -> str:
    """Return the line of an error that names the cause: the last of a traceback (MXNet's messages), else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Traceback") else 0][:300]


def _printable(letter: str, lines: bool) -> str:
    if letter in "\n\t":
        return letter if lines else " "
    category = unicodedata.category(letter)
    return "?" if category[0] == "C" or category in ("Zl", "Zp") else letter
