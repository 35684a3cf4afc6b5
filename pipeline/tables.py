"""CSV tables: write tables of results, and read tables of numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV with a header line. None becomes an empty cell; keys outside `columns` are ignored."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(row[key]) for key in columns} for row in rows)
    return text.getvalue()


def read_numbers(text: str, whole: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Parse a table of numbers: integers in the columns `whole`, floats elsewhere, None for empty cells."""
    return [
        {key: None if value == "" else (int if key in whole else float)(value) for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]


def _cell(value: Any) -> Any:
    """Format a cell, with an apostrophe before text that a spreadsheet would run as a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
