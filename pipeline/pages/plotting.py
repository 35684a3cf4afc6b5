"""Plots as SVG that take their colours from the page, so that they fit its light, dark and print styles."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: Placeholder colours that matplotlib can draw with -> the CSS variables that replace them in the SVG.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--series-1)",
    "#050505": "var(--series-2)",
    "#060606": "var(--mark)",
}
INK, MUTED, LINE, FIRST, SECOND, MARK = _COLOURS

#: Inches. At 72 units per inch this is about the width of a phone screen, where text then keeps its size.
_SIZE = (3.9, 2.6)

#: Differences from matplotlib's defaults.
_STYLE = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
}

#: The defaults that affect SVG output. The others are for windows and notebooks.
_DEFAULTS = {
    key: value
    for key, value in matplotlib.rcParamsDefault.items()
    if not key.startswith(("backend", "interactive", "toolbar", "timezone", "webagg", "tk."))
}

#: Decorator for functions that plot: applies the page's style, whatever a matplotlibrc or the caller has set.
styled = matplotlib.rc_context({**_DEFAULTS, **_STYLE})  # type: ignore[dict-item]


def new_figure(size: tuple[float, float] = _SIZE) -> Any:
    """Return a new figure and its axes, not registered with pyplot, which would need a display."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def as_svg(figure: Any, name: str) -> Markup:
    """Convert a figure to an `<svg>` element with CSS variables as colours, and ids prefixed with `name`.

    Hides it from assistive technology: the page gives each figure a text alternative.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id|clip-path|xlink:href)="(url\()?(#?)', rf'\1="\2\3{name}-', svg)
    for placeholder, variable in _COLOURS.items():
        svg = svg.replace(placeholder, variable)
    # Use the font of the page: few machines have matplotlib's.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    head = re.compile(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>')
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return Markup(head.sub(rf'<svg {namespaces} viewBox="\1" aria-hidden="true">', svg, count=1))
