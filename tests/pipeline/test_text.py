"""Untrusted text that reaches a terminal or a log."""

from __future__ import annotations

import pytest

from pipeline.errors import BY_NAME
from pipeline.text import cause, counted, printable, shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("caf\u00e9 \u732b \U0001f431", "caf\u00e9 \u732b \U0001f431"),
        ("98\u202f%, a\u00a0b", "98\u202f%, a\u00a0b"),
        ("\x1b[2J\x1b]0;title\x07", "?[2J?]0;title?"),
        ("\x9b31m and \r over it", "?31m and ? over it"),
        ("\u202egnp.exe, half \ud800", "?gnp.exe, half ?"),
        ("two\nlines\tand\u2028three", "two lines and?three"),
    ],
)
def test_control_characters_are_replaced(text: str, shown: str) -> None:
    assert printable(text) == shown
    for error in BY_NAME.values():
        assert str(error(text)) == shown


def test_a_name_is_shown_in_one_line_of_at_most_80_characters() -> None:
    assert shown("a\nb") == "a b"
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 5000) == "x" * 77 + "..."


def test_line_breaks_are_kept_on_request() -> None:
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb?"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Traceback (most recent call last):\n  File a.cc\nMXNetError: no space\n", "MXNetError: no space"),
        ("\nmodel is damaged\nmore detail", "model is damaged"),
        ("", "ValueError"),
    ],
)
def test_the_cause_of_an_error_is_one_line(message: str, expected: str) -> None:
    assert cause(ValueError(message)) == expected


def test_numbers_agree_with_their_nouns() -> None:
    assert [counted(number, "step") for number in (0, 1, 2, 71_000)] == ["0 steps", "1 step", "2 steps", "71,000 steps"]
