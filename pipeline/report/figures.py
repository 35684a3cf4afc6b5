"""The plots of a report: its learning curves."""

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
