"""The drawings of a report that no plotting library makes: the accuracy on its scale, and the network.

Plain SVG with the page's CSS variables as colours; text goes in through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

#: Width of the scale in its own units, about CSS pixels on a phone.
_WIDTH = 340

#: Convolutions of a block that are drawn, however many it has.
_DRAWN_CONVOLUTIONS = 4


@dataclass(frozen=True)
class Mark:
    """Another accuracy on the same scale, 0..1."""

    value: float
    text: str


def accuracy_scale(accuracy: float, interval: Sequence[float], marks: Sequence[Mark]) -> Markup:
    """An accuracy with its interval on a scale, and up to two other accuracies to see it against."""
    low, high = _scale_ends([*interval, accuracy, *(mark.value for mark in marks)])

    def x(value: float) -> float:
        return 16 + (_WIDTH - 32) * (value - low) / (high - low)

    parts = [_line(16, 48, _WIDTH - 16, 48, "var(--line)", 2)]
    step = _tick_step(high - low)
    tick = math.ceil(low / step - 1e-9) * step
    while tick <= high + 1e-9:
        parts.append(_line(x(tick), 45, x(tick), 51, "var(--muted)", 1))
        parts.append(_text(x(tick), 65, f"{tick * 100:.3g} %", "var(--muted)", x(tick)))
        tick += step
    for number, mark in enumerate(marks[:2]):
        parts.append(_line(x(mark.value), 18 + 14 * number, x(mark.value), 54, "var(--series-2)", 2))
        parts.append(_text(x(mark.value), 13 + 14 * number, mark.text, "var(--ink)", x(mark.value)))
    parts.append(_line(x(interval[0]), 48, x(interval[1]), 48, "var(--series-1)", 9, "round"))
    dot = '<circle cx="{:.1f}" cy="48" r="7" fill="var(--series-1)" stroke="var(--paper)" stroke-width="2"/>'
    parts.append(Markup(dot).format(x(accuracy)))
    return _svg(_WIDTH, 72, parts)


def interval_row(accuracy: float, interval: Sequence[float], values: Sequence[float], ends: Sequence[float]) -> Markup:
    """One row of a table as a dot on a scale that all rows share, with its interval and the single values."""

    def x(value: float) -> float:
        return 6 + 188 * (min(max(value, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0])

    parts = [_line(0, 10, 200, 10, "var(--line)", 1)]
    parts.append(_line(x(interval[0]), 10, x(interval[1]), 10, "var(--series-1)", 3, "round"))
    if len(values) > 1:
        parts += [_line(x(value), 4, x(value), 16, "var(--series-2)", 2) for value in values]
    parts.append(Markup('<circle cx="{:.1f}" cy="10" r="4.5" fill="var(--series-1)"/>').format(x(accuracy)))
    return _svg(200, 20, parts)


def network(blocks: Sequence[dict[str, Any]]) -> Markup:
    """The network from left to right: a solid for each convolution, as deep as its channels.

    It is as high as the images that its block hands on, which are those of the caption: after the pool.
    """
    middle = 52.0
    parts = [*_solids(middle, 32, 3, 1, "var(--line)"), *_caption(middle, "Input", "3 × 32 × 32", "")]
    for block in blocks:
        output = block["output"]
        solid = block["kind"] == "convolutions"
        drawn = min(block["convolutions"], _DRAWN_CONVOLUTIONS)
        width = drawn * (_depth(output[0]) + 3) + _face(output[1])[0] if solid else 0
        middle += max(112.0, width + 24)
        if solid:
            parts += _solids(middle, output[1], output[0], block["convolutions"], "var(--fill)")
        else:
            parts += _bar(middle, output[0], "var(--fill-2)")
        parts += _caption(
            middle, block["name"], " × ".join(map(str, output)), f"{share(block['compute_share'])} of compute"
        )
    return _svg(middle + 52, 212, parts)


def share(value: float) -> str:
    """A probability or a share that must not read as none or all when it is not: `12.3 %`, `<0.1 %`, `>99.9 %`."""
    text = "<0.1" if 0 < value < 0.0005 else ">99.9" if 0.9995 <= value < 1 else f"{value * 100:.1f}"
    return f"{text}\N{NARROW NO-BREAK SPACE}%"


# --- pieces -------------------------------------------------------------------------------------------------------


def _scale_ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max(0.01, 0.35 * (high - low))
    return max(0.0, low - margin), min(1.0, high + margin)


def _tick_step(span: float) -> float:
    """A round step that gives three to six ticks."""
    magnitude = 10.0 ** math.floor(math.log10(span / 3))
    return next(magnitude * factor for factor in (5, 2, 1, 0.5) if span / (magnitude * factor) >= 2.5)


def _face(side: int) -> tuple[float, float]:
    """Width (foreshortened) and height of the front of a solid for images of `side` pixels."""
    return 5.0 + side * 0.55, 18.0 + side * 3.2


def _depth(channels: int) -> float:
    return 4.0 + 3.2 * math.log2(max(2, channels))


def _solids(middle: float, side: int, channels: int, number: int, colour: str) -> list[Markup]:
    """Boxes seen from the front left, standing on a common middle line, one behind the other for each convolution."""
    slant, height = _face(side)
    number = min(number, _DRAWN_CONVOLUTIONS)
    depth = _depth(channels)
    top = 88 - height / 2 + slant / 4
    parts: list[Markup] = []
    for index in range(number):
        left = middle - (number * (depth + 3) + slant) / 2 + index * (depth + 3)
        right = left + depth
        front = [(left, top), (right, top), (right, top + height), (left, top + height)]
        lid = [(left, top), (left + slant, top - slant / 2), (right + slant, top - slant / 2), (right, top)]
        flank = [
            (right, top),
            (right + slant, top - slant / 2),
            (right + slant, top - slant / 2 + height),
            (right, top + height),
        ]
        # The paper below hides the box behind.
        parts += [_polygon(face, "var(--paper)", 1) for face in (front, lid, flank)]
        parts += [_polygon(front, colour, 1), _polygon(lid, colour, 0.75), _polygon(flank, colour, 0.55)]
    return parts


def _bar(middle: float, units: int, colour: str) -> list[Markup]:
    height = 16.0 + 10.0 * math.log2(max(2, units))
    top, left, right = 88 - height / 2, middle - 6, middle + 6
    return [_polygon([(left, top), (right, top), (right, top + height), (left, top + height)], colour, 1)]


def _caption(middle: float, name: str, shape: str, note: str) -> list[Markup]:
    return [
        _text(middle, 172, name, "var(--ink)", bold=True),
        _text(middle, 188, shape, "var(--ink)"),
        _text(middle, 204, note, "var(--muted)"),
    ]


def _polygon(points: Sequence[tuple[float, float]], colour: str, opacity: float) -> Markup:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup(
        '<polygon points="{}" fill="{}" fill-opacity="{}" stroke="var(--series-1)" stroke-width="1" '
        'stroke-linejoin="round"/>'
    ).format(text, colour, opacity)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, cap: str = "butt") -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}" stroke-linecap="{}"/>'
    ).format(x1, y1, x2, y2, colour, width, cap)


def _text(x: float, y: float, text: str, colour: str, within: float | None = None, bold: bool = False) -> Markup:
    """Centred text; one that would leave a drawing of `_WIDTH` is aligned to its edge instead (`within`)."""
    half = 3.6 * len(text)  # of a wide font: half of about 0.65 em a letter
    anchor = "middle"
    if within is not None and within - half < 0:
        x, anchor = 2, "start"
    elif within is not None and within + half > _WIDTH:
        x, anchor = _WIDTH - 2, "end"
    weight = "600" if bold else "400"
    return Markup(
        '<text x="{:.1f}" y="{}" font-size="11" font-weight="{}" text-anchor="{}" fill="{}">{}</text>'
    ).format(x, y, weight, anchor, colour, text)


def _svg(width: float, height: float, parts: Sequence[Markup]) -> Markup:
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0f} {:.0f}" aria-hidden="true">'
    return Markup(head).format(width, height) + Markup("").join(parts) + Markup("</svg>")
