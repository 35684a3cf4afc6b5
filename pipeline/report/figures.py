"""The plots of a report, as SVG text that takes its colours from the page.

Every colour is one of the page's CSS variables, so that a figure is right in light, dark and print alike. Matplotlib
is imported when the first figure is drawn.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

#: Stand-ins that matplotlib can draw with, and the CSS variables that replace them in the SVG.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--series-1)",
    "#050505": "var(--series-2)",
    "#060606": "var(--mark)",
    "#070707": "var(--fill)",
}
INK, MUTED, LINE, FIRST, SECOND, MARK, FILL = _COLOURS

#: Inches. At 72 units an inch this is about the width of a phone, so that text keeps its size there.
_SIZE = (3.9, 2.6)

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
}

#: For each curve: its axis, the keys of the history that it shows, and the factor to show them with.
_CURVES = {
    "loss": ("loss", ("train_loss", "validation_loss"), 1),
    "accuracy": ("accuracy, %", ("train_accuracy", "validation_accuracy"), 100),
    "learning_rate": ("learning rate", ("learning_rate",), 1),
    "speed": ("images a second", ("images_per_second",), 1),
}

_Figure = TypeVar("_Figure", bound=Callable[..., str])


def styled(draw: _Figure) -> _Figure:
    """Draw in the report's style, whatever the caller's matplotlib is set to."""

    @functools.wraps(draw)
    def drawn(*arguments: Any) -> str:
        import matplotlib

        with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
            return draw(*arguments)

    return drawn  # type: ignore[return-value]


def curves(history: Sequence[dict[str, Any]], resumes: Sequence[float]) -> dict[str, str]:
    """Loss, accuracy, learning rate and speed over the epochs; `resumes` are marked at their (fractional) epochs."""
    return {name: _curve(name, history, resumes) for name in _CURVES}


@styled
def _curve(name: str, history: Sequence[dict[str, Any]], resumes: Sequence[float]) -> str:
    label, keys, factor = _CURVES[name]
    epochs = [row["epoch"] for row in history]
    figure, axes = new_figure()
    for key, colour, style in zip(keys, (FIRST, SECOND), ("-", "--"), strict=False):
        values = [float("nan") if row[key] is None else row[key] * factor for row in history]
        if any(value == value for value in values):
            marker = "o" if len(epochs) < 13 else None
            text = "training" if key.startswith("train") else "validation"
            axes.plot(epochs, values, style, color=colour, label=text, marker=marker, markersize=3.5)
    for position in resumes:
        axes.axvline(position, color=MARK, linewidth=1.2, linestyle=(0, (2, 2)))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if name == "speed":
        axes.set_ylim(0, 1.1 * max((row[keys[0]] or 0 for row in history), default=0) or 1)
    if len(axes.lines) - len(resumes) > 1:
        axes.legend(loc="best", handlelength=1.8)
    return as_svg(figure, name)


@styled
def reliability(bins: Sequence[dict[str, Any]]) -> str:
    """The reliability diagram: accuracy against confidence, above a histogram of the confidences."""
    figure, (axes, below) = new_figure(rows=2, size=(3.9, 3.8), height_ratios=[3, 1])
    width = bins[0]["high"] - bins[0]["low"]
    filled = [item for item in bins if item["count"]]
    centres = [(item["low"] + item["high"]) / 2 for item in filled]
    for item in filled:
        axes.axvspan(item["low"], item["high"], 0, item["accuracy"], color=FILL, linewidth=0)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    accuracy = [item["accuracy"] for item in filled]
    spread = [[item["accuracy"] - item["interval"][0], item["interval"][1] - item["accuracy"]] for item in filled]
    confidence = [item["confidence"] for item in filled]
    axes.errorbar(
        confidence, accuracy, list(zip(*spread, strict=True)), fmt="o", color=FIRST, markersize=4.5, linewidth=1.3
    )
    axes.set_ylabel("share that is right")
    axes.set_ylim(0, 1)
    total = sum(item["count"] for item in bins)
    below.bar(centres, [100 * item["count"] / total for item in filled], width * 0.92, color=FIRST)
    below.set_ylabel("images, %")
    below.set_xlabel("confidence")
    for part in (axes, below):
        part.set_xlim(0, 1)
    axes.tick_params(labelbottom=False)
    return as_svg(figure, "reliability")


@styled
def heat_map(confusion: Sequence[Sequence[int]]) -> str:
    """A confusion matrix of many classes as shades, the share of each row."""
    import numpy as np
    from matplotlib.patches import Rectangle

    counts = np.array(confusion, float)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure, axes = new_figure(size=(3.9, 3.9))
    size = len(counts)
    for row in range(size):
        for column in range(size):
            if shares[row, column] >= 0.005:
                colour = FIRST if row == column else SECOND
                alpha = float(min(1.0, 0.15 + shares[row, column]))
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=alpha))
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted class, by number")
    axes.set_ylabel("true class, by number")
    return as_svg(figure, "confusion")


def new_figure(rows: int = 1, size: tuple[float, float] = _SIZE, height_ratios: Sequence[float] | None = None) -> Any:
    """A figure and its axes; not registered with pyplot, which would need a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, height_ratios=height_ratios)


def as_svg(figure: Any, name: str) -> str:
    """The figure as an `<svg>` element whose colours are CSS variables and whose ids are its own.

    It is hidden from assistive technology: the page gives each figure a text alternative of its own.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id|clip-path|xlink:href)="(url\()?(#?)', rf'\1="\2\3{name}-', svg)
    for stand_in, variable in _COLOURS.items():
        svg = svg.replace(stand_in, variable)
    # The page's own font; matplotlib's names one that few machines have.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    head = re.compile(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>')
    return head.sub(
        r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" '
        r'aria-hidden="true">',
        svg,
        count=1,
    )
