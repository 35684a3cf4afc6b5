"""Progress bars on the terminal of the `luigi` command, below everything else that is written there."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import select
import sys
import threading
import time
from typing import Any, TextIO, cast

from pipeline.storage.locks import is_gone
from pipeline.text import printable


class TerminalBar:
    """A stage's progress bar; does nothing where there is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._fraction = 0.0
        self._say("starting Python")
        if _terminal is not None:
            _terminal.settle()  # from now on lines go above the bar

    def say(self, event: dict[str, Any]) -> None:
        """Take what the stage's process reports: its progress, or before that a note of what it does."""
        message, left = event["message"], event.get("seconds_left")
        if event["event"] == "progress":
            self._fraction = event["fraction"]
            self._say(message.rpartition(", ")[0] if left else message, left)  # the time left is shown before it
        elif not self._fraction:
            self._say(message)

    def close(self) -> None:
        if _terminal is not None:
            _terminal.tell(bar=os.getpid())
            _terminal.settle()

    def _say(self, message: str, seconds_left: float | None = None) -> None:
        if _terminal is not None:
            told = {"what": self._what, "text": printable(message), "left": seconds_left}
            _terminal.tell(bar=os.getpid(), fraction=self._fraction, **told)


def line(width: int, fraction: float, seconds: float, left: float | None, text: str) -> str:
    """One bar, its per cent and its time, then as much of the text as there is room for in `width` columns."""
    cells = round(20 * min(1.0, max(0.0, fraction)))
    time_shown = f"{_clock(seconds)} so far" if left is None else f"{_clock(left)} left"
    shown = f"{'━' * cells}{'─' * (20 - cells)} {int(100 * fraction):3d} % {time_shown:>12}  {text}"
    return shown if len(shown) <= width else shown[: max(0, width - 1)] + "…"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class _Terminal:
    """The bars of all running stages, below everything else.

    Drawn by a thread of the command, which reads a pipe: with `--workers 2`, stages run in forked processes.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = os.pipe()
        self._command = os.getpid()
        self._bars: dict[int, dict[str, Any]] = {}  # by the process that tells of it
        self._live: Any = None
        self._drawn = threading.Event()
        drawing = self._drawing = threading.Lock()
        # No process is forked while the terminal is being written to: it could never write there itself.
        os.register_at_fork(before=drawing.acquire, after_in_parent=drawing.release)
        threading.Thread(target=self._run, daemon=True, name="terminal").start()

    def tell(self, **what: Any) -> None:
        """Say something to the thread, from any process."""
        with contextlib.suppress(OSError):  # the command is gone
            os.write(self._theirs, json.dumps(what).encode() + b"\n")

    def settle(self) -> None:
        """In the command itself: wait until everything that was told is drawn."""
        if os.getpid() == self._command:
            self._drawn.clear()
            self.tell(drawn=True)
            self._drawn.wait(timeout=5)

    def _run(self) -> None:
        stderr, rest = sys.stderr, b""
        while True:
            ready, _, _ = select.select([self._ours], [], [], 1.0 if self._bars else None)
            *told, rest = (rest + os.read(self._ours, 1 << 16)).split(b"\n") if ready else [rest]
            with self._drawing:
                settled = any([self._take(item, stderr) for item in told])
                self._draw(stderr)
            if settled:
                self._drawn.set()

    def _take(self, item: bytes, stderr: TextIO) -> bool:
        """Write a line, or take down what a bar is to show; True when somebody waits for that."""
        try:
            told = json.loads(item)
        except ValueError:  # more than a pipe keeps together
            told = {"line": item.decode(errors="replace")}
        if "line" in told and self._live is not None:
            self._live.console.print(told["line"], soft_wrap=True)
        elif "line" in told:
            stderr.write(told["line"] + "\n")
            stderr.flush()
        elif "text" in told:
            began = self._bars.get(told["bar"], {}).get("began", time.monotonic())
            self._bars[told["bar"]] = {**told, "began": began}
        elif "bar" in told:
            self._bars.pop(told["bar"], None)
        return "drawn" in told

    def _draw(self, stderr: TextIO) -> None:
        for process in [process for process in self._bars if is_gone(process)]:
            del self._bars[process]
        if self._bars and self._live is None:
            self._live = _live(stderr)
            _write_to(cast(TextIO, _AboveTheBars(self)))
        if self._bars:
            now = time.monotonic()
            width = self._live.console.width = _columns(stderr)
            lines = []
            for bar in self._bars.values():
                what = bar["what"] if len(self._bars) > 1 else bar["what"].split()[0]  # a run's name takes much room
                lines.append(line(width, bar["fraction"], now - bar["began"], bar["left"], f"{what}: {bar['text']}"))
            self._live.update("\n".join(lines), refresh=True)
        elif self._live is not None:
            self._live.stop()
            self._live = None
            _write_to(stderr)


def _columns(stderr: TextIO) -> int:
    """The width of the terminal, asked each time: it may be made smaller, or be gone."""
    try:
        return os.get_terminal_size(stderr.fileno()).columns or 80
    except OSError:
        return 80


def _live(stderr: TextIO) -> Any:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stderr, markup=False, emoji=False, highlight=False)
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
    live.start()
    return live


def _write_to(stderr: TextIO) -> None:
    """Put another standard error in place, for Luigi's own messages, too."""
    for handler in logging.getLogger("luigi-interface").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            handler.setStream(stderr)
    sys.stderr = stderr


class _AboveTheBars(io.TextIOBase):
    """Replaces standard error while bars are shown: writes whole lines above them."""

    def __init__(self, terminal: _Terminal) -> None:
        self._terminal = terminal
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for complete in lines:
            self._terminal.tell(line=complete)
        return len(text)

    def flush(self) -> None:
        if self._rest:
            self.write("\n")

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.__stderr__.fileno() if sys.__stderr__ else 2


_terminal: _Terminal | None = None


def draw_bars() -> None:
    """Let stages have progress bars on this command's terminal, if it has one."""
    global _terminal
    if sys.stderr is not None and sys.stderr.isatty():
        _terminal = _Terminal()


def speak_through_the_command() -> None:
    """In a process that Luigi forked for a task: write through the command, above its bars."""
    if _terminal is not None:
        _write_to(cast(TextIO, _AboveTheBars(_terminal)))


def settle() -> None:
    """At the end of the command: wait until everything is written."""
    if _terminal is not None:
        _terminal.settle()
