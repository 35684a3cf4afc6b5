"""From facts to pages: `index.html` and `report.md`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import pages
from pipeline.pages import drawing
from pipeline.report import figures

_TEMPLATES = Path(__file__).parent / "templates"

#: With more classes than so many, the worst ones come first.
_FEW_CLASSES = 12


def html(facts: dict[str, Any], images: Mapping[int, str]) -> str:
    """The page; `images` holds a `data:` address for every test image number under `facts["examples"]`."""
    training, evaluation, marks = facts["training"], facts["evaluation"], _marks(facts["comparison"])
    resumes = [segment["step"] * training["epochs"] / training["steps"] for segment in training["segments"][1:]]
    recall = _recall(evaluation["per_class"])
    per_class = [{**row, "drawn": drawn} for row, drawn in zip(evaluation["per_class"], recall["rows"], strict=True)]
    many = len(evaluation["classes"]) > _FEW_CLASSES
    return pages.html(
        _TEMPLATES / "report.html.j2",
        facts,
        scale=drawing.accuracy_scale(evaluation["accuracy"], evaluation["interval"], marks),
        marks=marks,
        recall=recall,
        per_class=per_class,
        worst=_worst(per_class),
        curves=figures.curves(training["history"], resumes),
        many=many,
        resumes=resumes,
        images=images,
    )


def markdown(facts: dict[str, Any]) -> str:
    """The summary for pull requests and mail."""
    per_class = facts["evaluation"]["per_class"]
    many = len(per_class) > _FEW_CLASSES
    return pages.markdown(_TEMPLATES / "report.md.j2", facts, many=many, worst=_worst(per_class))


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
