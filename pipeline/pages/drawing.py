"""Draw accuracies with their intervals as SVG, in the page's CSS variables. `Markup.format` escapes all text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipeline.pages.formats import percent

#: Width of the drawing in SVG units, about the CSS pixels of a phone screen.
_WIDTH = 340


def accuracy_scale(accuracy: float, interval: Sequence[float], marks: Mapping[str, float]) -> Markup:
    """Draw an accuracy and its interval on a scale, with up to two named accuracies, `marks`, for comparison."""
    low, high = _scale_ends([*interval, accuracy, *marks.values()])

    def x(value: float) -> float:
        return 16 + (_WIDTH - 32) * (value - low) / (high - low)

    parts = [_line(16, 48, _WIDTH - 16, 48, "var(--line)", 2)]
    for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high):
        if low <= tick <= high:
            parts.append(_line(x(tick), 45, x(tick), 51, "var(--muted)", 1))
            parts.append(_text(x(tick), 65, f"{tick * 100:.3g} %", "var(--muted)"))
    for number, (name, value) in enumerate(marks.items()):
        parts.append(_line(x(value), 18 + 14 * number, x(value), 54, "var(--series-2)", 2))
        parts.append(_text(x(value), 13 + 14 * number, f"{name} {percent(value)}", "var(--ink)"))
    parts.append(_line(x(interval[0]), 48, x(interval[1]), 48, "var(--series-1)", 9, "round"))
    dot = '<circle cx="{:.1f}" cy="48" r="7" fill="var(--series-1)" stroke="var(--paper)" stroke-width="2"/>'
    parts.append(Markup(dot).format(x(accuracy)))
    return _svg(_WIDTH, 72, parts)


def interval_row(accuracy: float, interval: Sequence[float], values: Sequence[float], ends: Sequence[float]) -> Markup:
    """Draw a table row's accuracy, on a scale shared by all rows: a dot, its interval, and the values it averages."""

    def x(value: float) -> float:
        return 6 + 188 * (min(max(value, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0])

    parts = [_line(0, 10, 200, 10, "var(--line)", 1)]
    parts.append(_line(x(interval[0]), 10, x(interval[1]), 10, "var(--series-1)", 3, "round"))
    if len(values) > 1:
        parts += [_line(x(value), 4, x(value), 16, "var(--series-2)", 2) for value in values]
    parts.append(Markup('<circle cx="{:.1f}" cy="10" r="4.5" fill="var(--series-1)"/>').format(x(accuracy)))
    return _svg(200, 20, parts)


# --- pieces -------------------------------------------------------------------------------------------------------


def _scale_ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max(0.01, 0.35 * (high - low))
    return max(0.0, low - margin), min(1.0, high + margin)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, cap: str = "butt") -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}" stroke-linecap="{}"/>'
    ).format(x1, y1, x2, y2, colour, width, cap)


def _text(x: float, y: float, text: str, colour: str) -> Markup:
    """Draw centred text, or align it to an edge of the drawing that it would cross."""
    half = 3.6 * len(text)  # half the width, at about 0.65 em per letter of a wide font
    x, anchor = (2, "start") if x < half else (_WIDTH - 2, "end") if x + half > _WIDTH else (x, "middle")
    element = '<text x="{:.1f}" y="{}" font-size="11" text-anchor="{}" fill="{}">{}</text>'
    return Markup(element).format(x, y, anchor, colour, text)


def _svg(width: float, height: float, parts: Sequence[Markup]) -> Markup:
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0f} {:.0f}" aria-hidden="true">'
    return Markup(head).format(width, height) + Markup("").join(parts) + Markup("</svg>")
