"""The calendar of generations: how periods are named, when the next one starts, and which is older."""

from __future__ import annotations

import datetime
import re


def today() -> datetime.date:
    """Return today's date in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date()


def name(every: str, day: datetime.date) -> str:
    """Return the name of the period that contains `day`: `2026-11-25`, `2026-W48` (ISO 8601 week), `2026-11`."""
    if every == "day":
        return day.isoformat()
    if every == "month":
        return f"{day:%Y-%m}"
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"


def next_start(every: str, day: datetime.date) -> datetime.date:
    """Return the first day of the period after the one that contains `day`. Weeks start on Monday."""
    if every == "day":
        return day + datetime.timedelta(days=1)
    if every == "month":
        return (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    return day + datetime.timedelta(days=7 - day.weekday())


def period(name: str) -> tuple[datetime.date, datetime.date] | None:
    """Return the first and last day of the period that a generation is named after; None for any other name."""
    match = re.fullmatch(r"(\d{4})-(?:W(\d\d)|(\d\d)(?:-(\d\d))?)", name)
    if match is None:
        return None
    year, week, month, day = (int(part) if part else 0 for part in match.groups())
    try:
        first = datetime.date.fromisocalendar(year, week, 1) if week else datetime.date(year, month, day or 1)
        every = "week" if week else "day" if day else "month"
        return first, next_start(every, first) - datetime.timedelta(days=1)
    except (ValueError, OverflowError):
        return None


def is_older(name: str, than: str) -> bool:
    """Whether one generation's period ended before the other's began. The periods may differ in length."""
    first, second = period(name), period(than)
    return first is not None and second is not None and first[1] < second[0]
