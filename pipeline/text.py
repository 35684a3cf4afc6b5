"""Text for people: numbers with their nouns, and foreign text (metadata, a library's message) made safe to show."""

from __future__ import annotations

import unicodedata


def counted(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`, `71,000 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str, lines: bool = False) -> str:
    """The text with `?` for whatever would command a terminal: control codes, changes of direction, half characters.

    Line breaks and tabs become spaces; with `lines` they stay.
    """
    if text.isprintable():
        return text
    return "".join(_printable(letter, lines) for letter in text)


def shown(name: str) -> str:
    """A name as it may be shown: in one line, at most 80 characters."""
    text = printable(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def cause(error: BaseException) -> str:
    """The line of a library's message that says what is wrong: MXNet's are tracebacks, with the cause at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Traceback") else 0][:300]


def _printable(letter: str, lines: bool) -> str:
    if letter in "\n\t":
        return letter if lines else " "
    category = unicodedata.category(letter)
    return "?" if category[0] == "C" or category in ("Zl", "Zp") else letter
