"""The plots of a report: learning curves, reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from pipeline.pages import plotting

#: For each curve: its axis, the keys of the history that it shows, and the factor to show them with.
_CURVES = {
    "loss": ("loss", ("train_loss", "validation_loss"), 1),
    "accuracy": ("accuracy, %", ("train_accuracy", "validation_accuracy"), 100),
    "learning_rate": ("learning rate", ("learning_rate",), 1),
    "speed": ("images per second", ("images_per_second",), 1),
}


def curves(history: Sequence[dict[str, Any]], resumes: Sequence[float]) -> dict[str, Markup]:
    """Loss, accuracy, learning rate and speed over the epochs; `resumes` are marked at their (fractional) epochs."""
    return {name: _curve(name, history, resumes) for name in _CURVES}


@plotting.styled
def _curve(name: str, history: Sequence[dict[str, Any]], resumes: Sequence[float]) -> Markup:
    label, keys, factor = _CURVES[name]
    epochs = [row["epoch"] for row in history]
    figure, axes = plotting.new_figure()
    for key, colour, style in zip(keys, (plotting.FIRST, plotting.SECOND), ("-", "--"), strict=False):
        values = [float("nan") if row[key] is None else row[key] * factor for row in history]
        if any(value == value for value in values):
            marker = "o" if len(epochs) < 13 else None
            text = "training" if key.startswith("train") else "validation"
            axes.plot(epochs, values, style, color=colour, label=text, marker=marker, markersize=3.5)
    for position in resumes:
        axes.axvline(position, color=plotting.MARK, linewidth=1.2, linestyle=(0, (2, 2)))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if name == "speed":
        axes.set_ylim(0, 1.1 * max((row[keys[0]] or 0 for row in history), default=0) or 1)
    if len(axes.lines) - len(resumes) > 1:
        axes.legend(loc="best", handlelength=1.8)
    return plotting.as_svg(figure, name)


@plotting.styled
def reliability(bins: Sequence[dict[str, Any]]) -> Markup:
    """The reliability diagram: accuracy against confidence, above a histogram of the confidences."""
    figure, (axes, below) = plotting.new_figure(rows=2, size=(3.9, 3.8), height_ratios=[3, 1])
    width = bins[0]["high"] - bins[0]["low"]
    filled = [item for item in bins if item["count"]]
    centres = [(item["low"] + item["high"]) / 2 for item in filled]
    for item in filled:
        axes.axvspan(item["low"], item["high"], 0, item["accuracy"], color=plotting.FILL, linewidth=0)
    axes.plot([0, 1], [0, 1], color=plotting.MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    accuracy = [item["accuracy"] for item in filled]
    spread = [[item["accuracy"] - item["interval"][0], item["interval"][1] - item["accuracy"]] for item in filled]
    confidence = [item["confidence"] for item in filled]
    axes.errorbar(
        confidence,
        accuracy,
        list(zip(*spread, strict=True)),
        fmt="o",
        color=plotting.FIRST,
        markersize=4.5,
        linewidth=1.3,
    )
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    total = sum(item["count"] for item in bins)
    below.bar(centres, [100 * item["count"] / total for item in filled], width * 0.92, color=plotting.FIRST)
    below.set_ylabel("images, %")
    below.set_xlabel("confidence")
    for part in (axes, below):
        part.set_xlim(0, 1)
    axes.tick_params(labelbottom=False)
    return plotting.as_svg(figure, "reliability")
