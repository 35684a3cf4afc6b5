"""The calendar of generations: the name of each period, when the next one starts, which of two is over before.

Reads nothing but the clock.
"""

from __future__ import annotations

import datetime
import re


def today() -> datetime.date:
    """The present day in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date()


def name(every: str, day: datetime.date) -> str:
    """The generation that `day` belongs to: `2026-11-25`, `2026-W48` (ISO 8601 week), `2026-11`."""
    if every == "day":
        return day.isoformat()
    if every == "month":
        return f"{day:%Y-%m}"
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"


def next_start(every: str, day: datetime.date) -> datetime.date:
    """The first day of the period after that of `day`. Weeks start on Monday."""
    if every == "day":
        return day + datetime.timedelta(days=1)
    if every == "month":
        return (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    return day + datetime.timedelta(days=7 - day.weekday())


def period(name: str) -> tuple[datetime.date, datetime.date] | None:
    """The first and the last day of the period that a generation is named after; None for any other name."""
    found = re.fullmatch(r"(\d{4})-(?:W(\d\d)|(\d\d)(?:-(\d\d))?)", name)
    if found is None:
        return None
    year, week, month, day = (int(part) if part else 0 for part in found.groups())
    try:
        first = datetime.date.fromisocalendar(year, week, 1) if week else datetime.date(year, month, day or 1)
        every = "week" if week else "day" if day else "month"
        return first, next_start(every, first) - datetime.timedelta(days=1)
    except (ValueError, OverflowError):
        return None


def is_older(name: str, than: str) -> bool:
    """True when the period of one generation was over before that of the other began, whatever their lengths."""
    one, other = period(name), period(than)
    return one is not None and other is not None and one[1] < other[0]
