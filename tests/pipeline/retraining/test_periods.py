"""The calendar of generations: the names of periods, and which one is older."""

from __future__ import annotations

import datetime

import pytest

from pipeline.retraining import periods

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
    assert periods.name(every, day) == name
    assert periods.next_start(every, day) == next_start
    assert periods.name(every, next_start) != name
    assert periods.name(every, next_start - datetime.timedelta(days=1)) == name


def test_names_sort_by_time() -> None:
    days = [DAY(2026, 1, 1) + datetime.timedelta(days=n) for n in range(800)]
    for every in ("day", "week", "month"):
        names = [periods.name(every, day) for day in days]
        assert names == sorted(names)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1970-W01", "2026-W48"),
        ("2026-W47", "2026-W48"),
        ("2026-W53", "2027-W01"),
        ("2026-10", "2026-11-26"),
        ("2026-10", "2026-W45"),
        ("2026-W43", "2026-11"),
        ("2026-11-22", "2026-W48"),
        ("2026-11-30", "2026-12"),
    ],
)
def test_periods_of_different_lengths_are_compared(older: str, newer: str) -> None:
    assert periods.is_older(older, newer)
    assert not periods.is_older(newer, older)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2026-11", "2026-11-26"),  # the month is not over
        ("2026-W48", "2026-11-26"),
        ("2026-W44", "2026-11"),  # from October to November
        ("2026-W48", "2026-W48"),
        ("2026-13", "2026-W48"),
        ("2026-W60", "2026-W48"),
        ("by-hand", "2026-W48"),
        ("", "2026-W48"),
        ("0000-01", "9999-12"),
    ],
)
def test_overlapping_periods_and_other_names_have_no_order(one: str, other: str) -> None:
    assert not periods.is_older(one, other)
    assert not periods.is_older(other, one)
