"""Format values for people: the filters of the page templates."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from pipeline.files import human_size
from pipeline.text import counted, printable

#: A word breaks after this many letters in a narrow column.
_LONG_WORD = 12


def percent(value: float | None, digits: int = 2) -> str:
    """Format 0.7405 as `74.05 %`, and None as a dash."""
    return "–" if value is None else f"{value * 100:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def share(value: float) -> str:
    """Format a share as `12.3 %`, or as `<0.1 %` or `>99.9 %` where rounding would give 0 or 100."""
    text = "<0.1" if 0 < value < 0.0005 else ">99.9" if 0.9995 <= value < 1 else f"{value * 100:.1f}"
    return f"{text}\N{NARROW NO-BREAK SPACE}%"


def points(value: float) -> str:
    """Format a difference of shares in percentage points: `+1.20`, `−0.35`."""
    return f"{value * 100:+.2f}".replace("-", "\N{MINUS SIGN}")


def count(value: float | None) -> str:
    """Format a number with separators: `613,402`."""
    return "–" if value is None else f"{value:,.0f}"


def times(number: int) -> str:
    """Format how often something happened: `never`, `1 time`, `3 times`."""
    return counted(number, "time") if number else "never"


def short(value: float) -> str:
    """Abbreviate a large number: `613 k`, `37.7 M`, `1.25 G`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:  # which three digits round up to it
            return f"{value / limit:.3g}\N{NARROW NO-BREAK SPACE}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Format seconds as `4.2 s`, `11 min 18 s` or `5 h 03 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def day(moment: str) -> str:
    """Format `2026-11-25T04:02:10Z` as `2026-11-25 04:02 UTC`."""
    return re.sub(r"T(\d\d:\d\d).*", r" \1 UTC", moment)


def plain(value: Any) -> str:
    """Format a configuration value as in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def breakable(name: str) -> Markup:
    """Escape a name, and let it break after its dots and underscores."""
    return _breaking_after(r"([^._]*[._])", name)


def name(text: str) -> Markup:
    """Escape a class name, and let it break within words that are too long for a column."""
    return _breaking_after(rf"(\S{{{_LONG_WORD}}}(?=\S))", text)


def _breaking_after(pattern: str, text: str) -> Markup:
    return Markup("<wbr>").join(part for part in re.split(pattern, text) if part)


def markdown(value: Any) -> Any:
    """Escape a string so that it is not read as Markdown or HTML."""
    if not isinstance(value, str):
        return value
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.splitlines()))


_FUNCTIONS = (percent, points, count, times, counted, short, duration, day, plain, breakable, name)
FILTERS = {**{function.__name__: function for function in _FUNCTIONS}, "probability": share, "size": human_size}
