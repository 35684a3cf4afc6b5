"""Progress of a running stage: sent to the scheduler, and as a bar on the terminal of the `luigi` command."""

from __future__ import annotations

import contextlib
import html
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.text import printable
from tasks.exit_codes import is_command
from tasks.settings import vgg
from tasks.signals import forked_for_a_task


class Progress:
    """What a running stage shows; at the end of a `with` block the last note is its result.

    A thread sends it to the scheduler, a few times a minute at most: when that is gone, Luigi's calls block for minutes
    and then raise.
    """

    def __init__(self, task: Any, log_path: Path, messages: Sequence[str]) -> None:
        self._bar = TerminalBar(task.what)
        self._places = [f"log: {log_path}", f"messages: {', '.join(messages)}"]
        self._fraction, self._facts, self.note = 0.0, "", ""
        # Luigi sets these while run() runs and to None otherwise; they are taken now, for the thread.
        self._message, self._percentage = task.set_status_message, task.set_progress_percentage
        self._seconds = vgg().report_seconds
        self._latest: tuple[float, str] | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scheduler-voice")
        if self._message is not None:
            self._thread.start()

    def show(self, event: dict[str, Any]) -> None:
        """Take what the stage's process reports: its progress, or a note of what it does. Never blocks nor raises."""
        if event["event"] == "progress":
            self._fraction, self._facts = event["fraction"], event["message"]
        else:
            self.note = event["message"]
        self._bar.show(event)
        self._say(*self._places)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        """Send what is left, for a moment at most."""
        if kind is None:
            self._fraction, self._facts = 1.0, ""
        self._say(self._places[0])  # it takes no messages any more
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)
        self._bar.close()

    def _say(self, *places: str) -> None:
        lines = [*self._facts.split(", "), self.note, *places]  # the dashboard's box is narrow: one fact a line
        self._latest = (self._fraction, "\n".join(line for line in lines if line))
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            latest, self._latest = self._latest, None
            if latest is not None:
                self._send(*latest)
            if self._closing.is_set() and self._latest is None:
                return
            self._closing.wait(self._seconds)  # a stage that ends must not wait for the next turn

    def _send(self, fraction: float, message: str) -> None:
        with contextlib.suppress(Exception):  # a scheduler that is gone is the scheduler's problem
            # The dashboard inserts the message as HTML, takes any percentage, and shows no bar at 0.
            self._message(html.escape(message))
            self._percentage(round(100 * min(1.0, max(0.01, fraction))))


class TerminalBar:
    """A bar below everything else on the terminal; none where there is no terminal, or with several `--workers`."""

    def __init__(self, what: str) -> None:
        self._what = what.split()[0]  # a run's name takes much room
        self._fraction, self._text = 0.0, "starting Python"
        self._seconds_left: float | None = None
        self._began = time.monotonic()
        self._live: Any = None
        if is_command() and not forked_for_a_task() and sys.stderr.isatty():
            self._start()

    def show(self, event: dict[str, Any]) -> None:
        """Take the progress, or before that a note."""
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
            with contextlib.suppress(OSError):  # the terminal, which may be gone, knows better than COLUMNS
                console.width = os.get_terminal_size(console.file.fileno()).columns or 80
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
