"""From facts to pages: `index.html` and `report.md`."""

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

#: With more classes than so many, the worst ones come first.
_FEW_CLASSES = 12

#: For each curve: its axis, the keys of the history that it shows, and the factor to show them with.
_CURVES = {
    "loss": ("loss", ("train_loss", "validation_loss"), 1),
    "accuracy": ("accuracy, %", ("train_accuracy", "validation_accuracy"), 100),
    "learning_rate": ("learning rate", ("learning_rate",), 1),
    "speed": ("images per second", ("images_per_second",), 1),
}


def html(facts: dict[str, Any], test_images: np.ndarray) -> str:
    """The page, which shows some of the test images, (n, 3, H, W) uint8."""
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
    """The summary for pull requests and mail."""
    per_class = facts["evaluation"]["per_class"]
    many = len(per_class) > _FEW_CLASSES
    return pages.markdown(_TEMPLATES / "report.md.j2", facts, many=many, worst=_worst(per_class))


def _resumes(training: dict[str, Any]) -> list[float]:
    """The (fractional) epochs at which a training was resumed."""
    rate = training["epochs"] / training["steps"]
    # An average: with another batch size an epoch has more or fewer steps.
    return [min(max(each["step"] * rate, each["epoch"]), each["epoch"] + 1) for each in training["segments"][1:]]


def _marks(comparison: dict[str, Any]) -> dict[str, float]:
    """The accuracies of the baseline, and of the previous generation where it is known on all of these test images."""
    previous = comparison["previous"]
    if previous and previous["on"] == "shared":
        previous = previous["all"]
    others = {"baseline": comparison["baseline"], "previous": previous}
    return {name: other["accuracy"] for name, other in others.items() if other}


def _recall(per_class: list[dict[str, Any]]) -> dict[str, Any]:
    """The recall of each class drawn on one scale, from the 5 % below the lowest interval to 100 %."""
    low = min(row["recall_interval"][0] for row in per_class)
    ends = (math.floor(max(0.0, low - 0.01) * 20) / 20, 1.0)
    rows = [drawing.interval_row(row["recall"] or 0.0, row["recall_interval"], [], ends) for row in per_class]
    return {"ends": ends, "rows": rows}


def _worst(per_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The classes of the lowest recall. Those without test images have none."""
    return sorted((row for row in per_class if row["support"]), key=lambda row: row["recall"])[:_FEW_CLASSES]


# --- pictures -----------------------------------------------------------------------------------------------------


@plotting.styled
def _curve(name: str, history: Sequence[dict[str, Any]], resumes: Sequence[float]) -> Markup:
    """A curve over the epochs; `resumes` are marked at their (fractional) epochs."""
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


def _data_uri(image: np.ndarray) -> str:
    """A (3, H, W) uint8 image as a PNG inside a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
