"""From facts to pages: `index.html` and `report.md`, by Jinja2 templates that escape every value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.files import human_size
from pipeline.report import drawing
from pipeline.text import printable

_TEMPLATES = Path(__file__).parent / "templates"

#: Rows that the table of the learning curves has at most, and classes up to which the confusion matrix is a table.
_HISTORY_ROWS, _TABLE_CLASSES = 60, 12

#: Letters of a word that stay together in a narrow column.
_LONG_WORD = 12


def html(facts: dict[str, Any], images: Mapping[int, str]) -> str:
    """The page; `images` holds a `data:` address for every test image number under `facts["examples"]`."""
    import jinja2
    from markupsafe import Markup

    from pipeline.report import figures

    templates = environment(jinja2, autoescape=True)
    resumes = _resumes(facts["training"])
    curves = figures.curves(facts["training"]["history"], [resume["epoch"] for resume in resumes])
    evaluation = facts["evaluation"]
    many = len(evaluation["classes"]) > _TABLE_CLASSES
    return templates.get_template("report.html.j2").render(
        **facts,
        version=__version__,
        style=style(),
        scale=drawing.accuracy_scale(evaluation["accuracy"], evaluation["interval"], _marks(facts)),
        network=drawing.network(facts["architecture"]["blocks"]),
        recall=_recall(evaluation["per_class"]),
        curves={name: Markup(svg) for name, svg in curves.items()},
        reliability=Markup(figures.reliability(evaluation["calibration"])),
        heat_map=Markup(figures.heat_map(evaluation["confusion"])) if many else None,
        resumes=resumes,
        history_rows=_thinned(facts["training"]["history"]),
        images=images,
    )


def markdown(facts: dict[str, Any]) -> str:
    """The summary for pull requests and mail."""
    import jinja2

    templates = environment(jinja2, autoescape=False, finalize=_escape_markdown)
    return templates.get_template("report.md.j2").render(**facts)


def style() -> Any:
    """The style sheet of all pages."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))


def environment(jinja2: Any, *folders: Path, **options: Any) -> Any:
    """The templates of the report and those in `folders`, with the filters below."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_TEMPLATES, *folders]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    found.filters.update(
        percent=percent,
        probability=drawing.share,
        points=points,
        count=count,
        duration=duration,
        size=human_size,
        short=short,
        day=day,
        plain=plain,
        breakable=breakable,
        name=name,
    )
    return found


def _marks(facts: dict[str, Any]) -> list[drawing.Mark]:
    comparison = facts["comparison"]
    marks = []
    if comparison["origin"]:
        marks.append(
            drawing.Mark(comparison["origin"]["accuracy"], f"origin {percent(comparison['origin']['accuracy'])}")
        )
    if comparison["previous"]:
        before = comparison["previous"]["accuracy"]
        marks.append(drawing.Mark(before, f"previous {percent(before)}"))
    return marks


def _recall(per_class: list[dict[str, Any]]) -> dict[str, Any]:
    """The recall of each class drawn on one scale, from the 5 % below the lowest interval to 100 %."""
    low = min(row["recall_interval"][0] for row in per_class)
    ends = (math.floor(max(0.0, low - 0.01) * 20) / 20, 1.0)
    rows = [drawing.interval_row(row["recall"] or 0.0, row["recall_interval"], [], ends) for row in per_class]
    return {"ends": ends, "rows": rows}


def _resumes(training: dict[str, Any]) -> list[dict[str, Any]]:
    """Where training went on after it was left: the epoch as a fraction, and how it went on."""
    steps_per_epoch = training["steps"] / training["epochs"]
    return [{**segment, "epoch": segment["step"] / steps_per_epoch} for segment in training["segments"][1:]]


def _thinned(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `_HISTORY_ROWS` rows, evenly spaced, the last one always among them."""
    every = max(1, math.ceil(len(history) / _HISTORY_ROWS))
    return [row for index, row in enumerate(history, start=1) if index % every == 0 or index == len(history)]


# --- filters ------------------------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 2) -> str:
    """0.7405 as `74.05 %`; nothing as a dash."""
    return "–" if value is None else f"{value * 100:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: `+1.20`, `−0.35`."""
    return f"{value * 100:+.2f}".replace("-", "\N{MINUS SIGN}")


def count(value: float | None, digits: int = 0) -> str:
    """A number with separators: `613,402`."""
    return "–" if value is None else f"{value:,.{digits}f}"


def short(value: float) -> str:
    """A large number for reading: `613 k`, `37.7 M`, `1.25 G`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}\N{NARROW NO-BREAK SPACE}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds for reading: `4.2 s`, `11 min 18 s`, `5 h 03 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def day(moment: str) -> str:
    """`2026-11-25T04:02:10Z` as `2026-11-25 04:02 UTC`."""
    return re.sub(r"T(\d\d:\d\d).*", r" \1 UTC", moment)


def plain(value: Any) -> str:
    """A value of the configuration as it stands in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def breakable(name: str) -> Any:
    """A dotted or underscored name that may be broken after its dots and underscores, escaped."""
    return _broken_where(r"([^._]*[._])", name)


def name(text: str) -> Any:
    """A class name that may be broken between its words, and within one that no column can hold, escaped."""
    return _broken_where(rf"(\S{{{_LONG_WORD}}}(?=\S))", text)


def _broken_where(pattern: str, text: str) -> Any:
    """A text that may be broken after whatever matches the pattern."""
    from markupsafe import Markup

    parts = [part for part in re.split(pattern, text) if part]
    return Markup("<wbr>").join(parts)


def _escape_markdown(value: Any) -> Any:
    """Keep a value from being read as Markdown or HTML."""
    if not isinstance(value, str):
        return value
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.splitlines()))
