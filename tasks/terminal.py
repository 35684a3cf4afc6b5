"""A stage's progress bar on the terminal of the `luigi` command, below everything else that is written there."""

from __future__ import annotations

import sys
import time
from typing import Any

from pipeline.text import printable
from tasks.exit_codes import is_command
from tasks.signals import forked_for_a_task


class TerminalBar:
    """Does nothing where there is no terminal, or several processes would write to it (`--workers 2`)."""

    def __init__(self, what: str) -> None:
        self._what = what.split()[0]  # a run's name takes much room
        self._fraction, self._text = 0.0, "starting Python"
        self._seconds_left: float | None = None
        self._began = time.monotonic()
        self._live: Any = None
        if is_command() and not forked_for_a_task() and sys.stderr.isatty():
            self._start()

    def say(self, event: dict[str, Any]) -> None:
        """Take what the stage's process reports: its progress, or before that a note of what it does."""
        message = event["message"]
        if event["event"] == "progress":
            self._fraction, self._seconds_left = event["fraction"], event.get("seconds_left")
            self._text = message.rpartition(", ")[0] if self._seconds_left else message  # it is shown before it
        elif not self._fraction:
            self._text = message

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _start(self) -> None:
        """Draw it from a thread; from now on what is written to `sys.stderr` goes above it."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        def draw() -> Text:
            seconds = time.monotonic() - self._began
            shown = line(self._fraction, seconds, self._seconds_left, f"{self._what}: {self._text}")
            return Text(shown, no_wrap=True, overflow="ellipsis")

        console = Console(file=sys.stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
        self._live = Live(console=console, get_renderable=draw, transient=True, redirect_stdout=False)
        self._live.start(refresh=True)


def line(fraction: float, seconds: float, left: float | None, text: str) -> str:
    """A bar, its per cent and its time, then the text."""
    cells = round(20 * min(1.0, max(0.0, fraction)))
    time_shown = f"{_clock(seconds)} so far" if left is None else f"{_clock(left)} left"
    return f"{'━' * cells}{'─' * (20 - cells)} {int(100 * fraction):3d} % {time_shown:>12}  {printable(text)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
