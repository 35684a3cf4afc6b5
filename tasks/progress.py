"""Progress for the scheduler, sent in the background: when it is gone, Luigi's calls block for minutes and raise."""

from __future__ import annotations

import contextlib
import html
import threading
from typing import Any


class SchedulerProgress:
    """Sends the latest progress of a task to the scheduler from a thread, a few times a minute at most."""

    def __init__(self, task: Any, seconds: float) -> None:
        # Luigi sets these while run() runs and to None otherwise; they are taken now, for the thread.
        self._message, self._percentage = task.set_status_message, task.set_progress_percentage
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
            # The dashboard inserts the message as HTML, takes any percentage, and shows no bar at 0.
            self._message(html.escape(message))
            self._percentage(round(100 * min(1.0, max(0.01, fraction))))
