"""Render the page of a ranking, `index.html`, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipeline import pages
from pipeline.pages import drawing, plotting
from pipeline.pages.formats import short

_TEMPLATE = Path(__file__).parent / "templates" / "comparison.html.j2"

#: Key of a ranking entry -> label of its axis.
COSTS = {
    "multiply_adds": "multiply-adds per image",
    "parameters": "parameters",
    "seconds": "training time, s",
}


def html(facts: dict[str, Any]) -> str:
    """Render the page from the facts of `ranking.gather`."""
    ranking = facts["ranking"]
    ends = _ends(ranking)
    rows = [
        drawing.interval_row(group["accuracy"], group["interval"], [run["accuracy"] for run in group["runs"]], ends)
        for group in ranking
    ]
    plots = {cost: _plot(cost, ranking) for cost in COSTS} if len(ranking) > 1 else {}
    return pages.html(_TEMPLATE, facts, rows=rows, ends=ends, plots=plots)


def pareto_front(ranking: Sequence[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """Return the configurations on the Pareto front, cheapest first: none is beaten at the same or lower cost."""

    def beaten(group: dict[str, Any]) -> bool:
        own = group["accuracy"], group[cost]
        others = ((other["accuracy"], other[cost]) for other in ranking)
        return any(other != own and other[0] >= own[0] and other[1] <= own[1] for other in others)

    return sorted((group for group in ranking if not beaten(group)), key=lambda group: group[cost])


def _ends(ranking: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the ends of the scale. It covers all accuracies, and the intervals up to a margin around them."""
    low, high = min(group["least"] for group in ranking), max(group["most"] for group in ranking)
    margin = max(0.05, high - low)
    low = max(low - margin, min(group["interval"][0] for group in ranking))
    high = min(high + margin, max(group["interval"][1] for group in ranking))
    return (low, high) if high > low else (low - 0.01, high + 0.01)


@plotting.styled
def _plot(cost: str, ranking: Sequence[dict[str, Any]]) -> Markup:
    """Plot accuracy against a cost on a logarithmic scale, with a line along the Pareto front."""
    figure, axes = plotting.new_figure(size=(3.9, 3.0))
    front = [_point(group, cost) for group in pareto_front(ranking, cost)]
    axes.plot(*zip(*front, strict=True), color=plotting.LINE, linewidth=1.5, zorder=1)
    for group in ranking:
        x, y = _point(group, cost)
        values = [100 * run["accuracy"] for run in group["runs"]]
        axes.plot([x] * len(values), values, "_", color=plotting.SECOND, markersize=7, zorder=2)
        axes.plot([x], [y], "o", color=plotting.FIRST, markersize=6, zorder=3)
        axes.annotate(str(group["rank"]), (x, y), xytext=(6, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel("test accuracy, %")
    _few_ticks(axes)
    return plotting.as_svg(figure, cost)


def _point(group: dict[str, Any], cost: str) -> tuple[float, float]:
    return max(group[cost], 1e-3), 100 * group["accuracy"]


def _few_ticks(axes: Any) -> None:
    """Put ticks at round numbers on a logarithmic x axis, even if it spans less than a power of ten."""
    low, high = axes.get_xlim()
    steps = (1,) if high / low > 100 else (1, 3) if high / low > 15 else (1, 2, 5) if high / low > 2 else range(1, 10)
    axes.xaxis.set_major_locator(LogLocator(subs=tuple(steps)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: short(value) if value >= 1 else f"{value:g}"))
