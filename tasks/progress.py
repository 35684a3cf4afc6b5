"""Progress of a running stage, reported to the scheduler and as a bar on the terminal of the `luigi` command."""

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

from pipeline.text import clock, printable
from tasks.exit_codes import is_command
from tasks.settings import vgg
from tasks.signals import in_task_process


class Progress:
    """Context manager that reports a stage's progress; its last note is the result.

    A background thread sends updates to the scheduler at most every `report_seconds`: if the scheduler is gone,
    Luigi's calls block for minutes and then raise.
    """

    def __init__(self, task: Any, log_path: Path, messages: Sequence[str]) -> None:
        self._bar = TerminalBar(task.display_name)
        self._footer = [f"log: {log_path}", f"messages: {', '.join(messages)}"]
        self._fraction, self._facts, self.note = 0.0, "", ""
        # Luigi sets these to None when run() ends: keep them for the thread.
        self._message, self._percentage = task.set_status_message, task.set_progress_percentage
        self._seconds = vgg().report_seconds
        self._latest: tuple[float, str] | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scheduler-progress")
        if self._message is not None:
            self._thread.start()

    def show(self, event: dict[str, Any]) -> None:
        """Show a progress or note event of the stage's process. Never blocks or raises."""
        if event["event"] == "progress":
            self._fraction, self._facts = event["fraction"], event["message"]
        else:
            self.note = event["message"]
        self._bar.show(event)
        self._queue(*self._footer)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        """Send the last update, waiting at most a second for the scheduler."""
        if kind is None:
            self._fraction, self._facts = 1.0, ""
        self._queue(self._footer[0])  # it accepts no more messages
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)
        self._bar.close()

    def _queue(self, *footer: str) -> None:
        lines = [*self._facts.split(", "), self.note, *footer]  # one fact per line: the dashboard's box is narrow
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
            self._closing.wait(self._seconds)  # unlike sleep, ends as soon as the stage does

    def _send(self, fraction: float, message: str) -> None:
        with contextlib.suppress(Exception):  # a lost scheduler must not stop the stage
            # The dashboard inserts the message as HTML, accepts any percentage, and shows no bar at 0.
            self._message(html.escape(message))
            self._percentage(round(100 * min(1.0, max(0.01, fraction))))


class TerminalBar:
    """A bar at the bottom of the terminal. Shows nothing without a terminal or with several workers."""

    def __init__(self, name: str) -> None:
        self._stage = name.split()[0]  # a run's name is long
        self._fraction, self._text = 0.0, "starting Python"
        self._seconds_left: float | None = None
        self._began = time.monotonic()
        self._live: Any = None
        if is_command() and not in_task_process() and sys.stderr.isatty():
            self._start()

    def show(self, event: dict[str, Any]) -> None:
        """Show a progress event, or a note until the first one arrives."""
        message = event["message"]
        if event["event"] == "progress":
            self._fraction, self._seconds_left = event["fraction"], event.get("seconds_left")
            # The bar shows the time left itself.
            self._text = message.rpartition(", ")[0] if self._seconds_left else message
        elif not self._fraction:
            self._text = message

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _start(self) -> None:
        """Draw the bar from a thread. From now on output to `sys.stderr` appears above it."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        def draw() -> Text:
            with contextlib.suppress(OSError):  # the terminal may be gone; its width beats COLUMNS
                console.width = os.get_terminal_size(console.file.fileno()).columns or 80
            seconds = time.monotonic() - self._began
            text = render_bar(self._fraction, seconds, self._seconds_left, f"{self._stage}: {self._text}")
            return Text(text, no_wrap=True, overflow="ellipsis")

        console = Console(file=sys.stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
        self._live = Live(console=console, get_renderable=draw, transient=True, redirect_stdout=False)
        self._live.start(refresh=True)


def render_bar(fraction: float, seconds: float, left: float | None, text: str) -> str:
    cells = round(20 * min(1.0, max(0.0, fraction)))
    time_shown = f"{clock(seconds)} so far" if left is None else f"{clock(left)} left"
    return f"{'━' * cells}{'─' * (20 - cells)} {int(100 * fraction):3d} % {time_shown:>12}  {printable(text)}"
