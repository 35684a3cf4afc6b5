"""Names of generations, and what is due when."""

from __future__ import annotations

import datetime

import pytest

from pipeline import generations

DAY = datetime.date


@pytest.mark.parametrize(
    ("every", "day", "name", "next_start"),
    [
        ("day", DAY(2026, 11, 25), "2026-11-25", DAY(2026, 11, 26)),
        ("week", DAY(2026, 11, 25), "2026-W48", DAY(2026, 11, 30)),
        ("week", DAY(2026, 11, 29), "2026-W48", DAY(2026, 11, 30)),
        ("week", DAY(2026, 11, 30), "2026-W49", DAY(2026, 12, 7)),
        ("week", DAY(2027, 1, 1), "2026-W53", DAY(2027, 1, 4)),  # ISO weeks belong to the year of their Thursday
        ("week", DAY(2024, 12, 30), "2025-W01", DAY(2025, 1, 6)),
        ("month", DAY(2026, 12, 31), "2026-12", DAY(2027, 1, 1)),
        ("month", DAY(2028, 2, 29), "2028-02", DAY(2028, 3, 1)),
    ],
)
def test_a_day_belongs_to_one_generation(every: str, day: DAY, name: str, next_start: DAY) -> None:
    assert generations.name(every, day) == name
    assert generations.next_start(every, day) == next_start
    assert generations.name(every, next_start) != name
    assert generations.name(every, next_start - datetime.timedelta(days=1)) == name


def test_names_sort_by_time() -> None:
    days = [DAY(2026, 1, 1) + datetime.timedelta(days=n) for n in range(800)]
    for every in ("day", "week", "month"):
        names = [generations.name(every, day) for day in days]
        assert names == sorted(names)
