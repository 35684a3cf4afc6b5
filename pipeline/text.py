"""Text that came from elsewhere (a file's metadata, a library's message, a name) made fit to be shown."""

from __future__ import annotations

import unicodedata


def printable(text: str, lines: bool = False) -> str:
    """The text with `?` for whatever would command a terminal: control codes, changes of direction, half characters.

    Line breaks and tabs become spaces; with `lines` they stay.
    """
    if text.isprintable():
        return text
    return "".join(_printable(letter, lines) for letter in text)


def _printable(letter: str, lines: bool) -> str:
    if letter in "\n\t":
        return letter if lines else " "
    category = unicodedata.category(letter)
    return "?" if category[0] == "C" or category in ("Zl", "Zp") else letter
