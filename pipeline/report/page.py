"""Render the facts of a report as `index.html` and `report.md`."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from pipeline import pages
from pipeline.pages import drawing, plotting

_TEMPLATES = Path(__file__).parent / "templates"

#: With more classes than this, the page puts the worst ones first.
_FEW_CLASSES = 12

#: Curve -> label of its axis, the keys of the history that it shows, and the factor to scale them by.
_CURVES = {
    "loss": ("loss", ("train_loss", "validation_loss"), 1),
    "accuracy": ("accuracy, %", ("train_accuracy", "validation_accuracy"), 100),
    "learning_rate": ("learning rate", ("learning_rate",), 1),
    "speed": ("images per second", ("images_per_second",), 1),
}


def html(facts: dict[str, Any], test_images: np.ndarray) -> str:
    """Render the page, with some of the test images, (n, 3, H, W) uint8."""
    training, evaluation, marks = facts["training"], facts["evaluation"], _marks(facts["comparison"])
    resumes = _resumes(training)
    recall = _recall(evaluation["per_class"])
    per_class = [{**row, "drawn": drawn} for row, drawn in zip(evaluation["per_class"], recall["rows"], strict=True)]
    many = len(evaluation["classes"]) > _FEW_CLASSES
    shown = [example["image"] for example in facts["examples"]["mistakes"]]
    return pages.html(
        _TEMPLATES / "report.html.j2",
        facts,
        scale=drawing.accuracy_scale(evaluation["accuracy"], evaluation["interval"], marks),
        marks=marks,
        recall=recall,
        per_class=per_class,
        worst=_worst(per_class),
        curves={name: _curve(name, training["history"], resumes) for name in _CURVES},
        many=many,
        resumes=resumes,
        images={number: _data_uri(test_images[number]) for number in shown},
    )


def markdown(facts: dict[str, Any]) -> str:
    """Render the summary for pull requests and mail."""
    per_class = facts["evaluation"]["per_class"]
    many = len(per_class) > _FEW_CLASSES
    return pages.markdown(_TEMPLATES / "report.md.j2", facts, many=many, worst=_worst(per_class))


def _resumes(training: dict[str, Any]) -> list[float]:
    """Return the (fractional) epochs at which a training was resumed."""
    rate = training["epochs"] / training["steps"]
    # An average: a changed batch size changes the steps per epoch.
    resumed = training["segments"][1:]
    return [min(max(segment["step"] * rate, segment["epoch"]), segment["epoch"] + 1) for segment in resumed]


def _marks(comparison: dict[str, Any]) -> dict[str, float]:
    """Return the accuracies of the baseline, and of the previous generation if known on all of these test images."""
    previous = comparison["previous"]
    if previous and previous["on"] == "shared":
        previous = previous["all"]
    others = {"baseline": comparison["baseline"], "previous": previous}
    return {name: other["accuracy"] for name, other in others.items() if other}


def _recall(per_class: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw the recall of each class on one scale, from the multiple of 5 % below the lowest interval to 100 %."""
    low = min(row["recall_interval"][0] for row in per_class if row["recall"] is not None)
    ends = (math.floor(max(0.0, low - 0.01) * 20) / 20, 1.0)
    rows = [
        drawing.interval_row(row["recall"], row["recall_interval"], [], ends) if row["recall"] is not None else Markup()
        for row in per_class
    ]
    return {"ends": ends, "rows": rows}


def _worst(per_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the classes with the lowest recall, which is undefined for classes without test images."""
    return sorted((row for row in per_class if row["support"]), key=lambda row: row["recall"])[:_FEW_CLASSES]


# --- plots and images ------------------------------------------------------------------------------------------------


@plotting.styled
def _curve(name: str, history: Sequence[dict[str, Any]], resumes: Sequence[float]) -> Markup:
    """Plot a curve over the epochs, with a line at each of the (fractional) epochs `resumes`."""
    label, keys, factor = _CURVES[name]
    epochs = [row["epoch"] for row in history]
    figure, axes = plotting.new_figure()
    for key, colour, style in zip(keys, (plotting.FIRST, plotting.SECOND), ("-", "--"), strict=False):
        values = [float("nan") if row[key] is None else row[key] * factor for row in history]
        if any(value == value for value in values):  # not all are NaN
            marker = "o" if len(epochs) < 13 else None
            text = "training" if key.startswith("train") else "validation"
            axes.plot(epochs, values, style, color=colour, label=text, marker=marker, markersize=3.5)
    for position in resumes:
        axes.axvline(position, color=plotting.MARK, linewidth=1.2, linestyle=(0, (2, 2)))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if name == "speed":
        axes.set_ylim(0, 1.1 * max((row[keys[0]] or 0 for row in history), default=0) or 1)
    if len(axes.lines) - len(resumes) > 1:
        axes.legend(loc="best", handlelength=1.8)
    return plotting.as_svg(figure, name)


def _data_uri(image: np.ndarray) -> str:
    """Encode a (3, H, W) uint8 image as a PNG in a `data:` URL."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
