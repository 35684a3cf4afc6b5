"""Progress of a running stage: to the scheduler in the background, and to the terminal.

Reporting must never slow or break what it reports on: a scheduler that is gone makes Luigi's calls block for
minutes and then raise.
"""

from __future__ import annotations

import contextlib
import html
import io
import multiprocessing
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO, cast

from pipeline.text import printable
from tasks.defaults import is_command


def tell(text: str) -> None:
    """Print what a task answers with; names in it, from files and stores, may hold anything."""
    print(printable(text, lines=True))


class SchedulerVoice:
    """Sends the latest progress of a task to the scheduler from a thread, a few times a minute at most."""

    def __init__(self, task: Any, seconds: float) -> None:
        # Luigi sets these while run() runs and to None otherwise; they are taken now, for the thread.
        self._message: Callable[[str], None] | None = task.set_status_message
        self._percentage: Callable[[int], None] | None = task.set_progress_percentage
        self._seconds = seconds
        self._latest: tuple[float, str] | None = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scheduler-voice")
        if self._message is not None:
            self._thread.start()

    def say(self, fraction: float, message: str) -> None:
        """The latest state; never blocks and never raises."""
        self._latest = (fraction, message)
        self._wake.set()

    def close(self) -> None:
        """Send what is left, for a moment at most."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            latest, self._latest = self._latest, None
            if latest is not None:
                self._send(*latest)
            if self._closing.is_set():
                return
            self._closing.wait(self._seconds)  # a stage that ends must not wait for the next turn

    def _send(self, fraction: float, message: str) -> None:
        with contextlib.suppress(Exception):  # a scheduler that is gone is the scheduler's problem
            assert self._message is not None
            assert self._percentage is not None
            # The dashboard inserts the message as HTML, takes any percentage, and shows no bar at 0.
            self._message(html.escape(message))
            self._percentage(round(100 * min(1.0, max(0.01, fraction))))


class TerminalBar:
    """A progress bar on a terminal; nothing elsewhere (a log gets one line an epoch instead).

    Nothing in a worker process of `--workers 2` either: two bars would overwrite each other.
    """

    def __init__(self) -> None:
        self._progress: Any = None
        if is_command() and sys.stderr.isatty() and multiprocessing.parent_process() is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._stderr = sys.stderr
            console = Console(file=self._stderr)
            self._progress = Progress(
                BarColumn(20),
                TaskProgressColumn(),
                TextColumn("{task.description}", markup=False),
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,  # rich's own would wrap long lines, and break the paths in them
            )
            self._task = self._progress.add_task("starting", total=1.0)
            self._progress.start()
            sys.stderr = cast(TextIO, _AboveTheBar(console))

    def say(self, fraction: float, message: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=fraction, description=printable(message))

    def close(self) -> None:
        if self._progress is not None:
            sys.stderr.flush()
            sys.stderr = self._stderr
            self._progress.stop()


class _AboveTheBar(io.TextIOBase):
    """Takes the place of standard error while a bar is shown: whole lines, unchanged, above it."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._console.print(line, soft_wrap=True, markup=False, emoji=False, highlight=False)
        return len(text)

    def flush(self) -> None:
        if self._rest:
            self.write("\n")

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._console.file.fileno())
