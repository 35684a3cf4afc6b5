"""The parent's side of a stage: the one function that starts a stage's process and follows it to its end.

Reads the child's events, passes commands and signals on, leaves the child's log behind. Never forks the work itself:
CUDA does not survive a fork, and a long step in a Luigi worker would starve its heartbeat.
"""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import errors
from pipeline.files import open_regular
from pipeline.process import liveness
from pipeline.process.child import EXIT_INTERRUPTED, GRACE_SECONDS, chain_of, request
from pipeline.process.cores import misread_threads, thread_environment
from pipeline.process.launcher import command_line, own_environment
from pipeline.process.liveness import Monitor
from pipeline.workspace.freshness import UPSTREAM, Chain

MODULES = {
    "dataset": "pipeline.dataset",
    "train": "pipeline.training",
    "evaluate": "pipeline.evaluation",
    "export": "pipeline.export",
    "promote": "pipeline.retraining.promotion",
    "report": "pipeline.report",
    "compare": "pipeline.comparison",
}


class Stopped(KeyboardInterrupt):
    """This process was asked to stop, and the stage has ended; `signal` is the signal that asked.

    `finished` when its result was there before it could stop.
    """

    def __init__(self, message: str, number: int, finished: bool = False) -> None:
        super().__init__(message)
        self.signal, self.finished = number, finished


def run_stage(
    stage: str,
    chain: Chain,
    *,
    log: Path,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    take_commands: Callable[[], Iterable[str]] = tuple,
    launcher: Sequence[str] = (),
    inherit: Sequence[int] = (),
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run one stage in a process of its own and give its result.

    `launcher` is put in front of the command (see `launcher`); `take_commands` is asked a few times a second
    for commands to pass to the child (see `reporter.COMMANDS`); `inherit` are file descriptors (locks) that the child
    keeps open. Raises the `PipelineError` that the child reported, `StageFailed` when it died without one, and
    `Stopped` when this process got SIGTERM or SIGINT; a second SIGINT (Ctrl-C) kills the child at once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    _remove_debris(chain.folder(stage))
    if stage == "train" and (misread := misread_threads(os.environ)):
        on_event({"event": "note", "message": misread})
    with _appended(log) as log_file, _signals() as received:
        told = {**(options or {}), **({"launched": True} if launcher else {})}
        first_line, words = request(chain, **told), command(stage)
        several = stage == "train" and chain.config.distributed.workers > 1
        monitor = Monitor(launcher, log) if launcher or several else None
        if monitor:
            first_line |= monitor.request()
        if launcher:
            words = command_line(launcher, words, chain.workspace.root.absolute(), Path(__file__).resolve().parents[1])
        child = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=environment(here=not launcher and not several),  # of several each gets its part of the cores
            pass_fds=tuple(inherit),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on in order
        )
        try:
            return _follow(stage, child, first_line, log, on_event, take_commands, received, monitor)
        finally:
            _end(child, monitor)


def _appended(log: Path) -> BinaryIO:
    return os.fdopen(open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def command(stage: str) -> list[str]:
    """The command line of a stage's process."""
    return module_command(MODULES[stage])


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line of a process that is a module of this very package, whatever else is called `pipeline`."""
    return [sys.executable, str(Path(__file__).resolve().parents[1] / "start.py"), module, *arguments]


def environment(here: bool = True) -> dict[str, str]:
    """The environment of a stage's process, `here` or on a machine that a launcher chooses."""
    # Elsewhere the node decides about threads. One of several processes that fails must not leave the others.
    threads = thread_environment(os.environ) if here else {"SLURM_KILL_BAD_EXIT": "1"}
    return {**own_environment(os.environ), **threads, "PYTHONUNBUFFERED": "1"}


def _follow(
    stage: str,
    child: subprocess.Popen[bytes],
    first_line: dict[str, Any],
    log: Path,
    on_event: Callable[[dict[str, Any]], None],
    take_commands: Callable[[], Iterable[str]],
    received: list[tuple[int, float]],
    monitor: Monitor | None,
) -> dict[str, Any]:
    pipe = _Pipe(child)
    pipe.send(json.dumps(first_line))
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    asked_at: float | None = None
    for event in _events(child):
        pipe.write()
        if received and asked_at is None:
            asked_at = time.monotonic()
            pipe.send("stop")
            if monitor:
                monitor.stop(child)
        if _in_a_hurry(received) or (asked_at is not None and time.monotonic() - asked_at > GRACE_SECONDS + 2):
            _kill(child, monitor)
        for line in take_commands():
            pipe.send(line)
        if monitor:
            if monitor.heartbeat_due():
                pipe.heartbeat()
            event = monitor.attend(event, child)
        if event is None:
            continue
        if event.get("event") == "result":
            result = event["value"]
        elif event.get("event") == "error":
            error = error or event  # of several processes the first one tells the cause
        elif event.get("event") == "broadcast":  # from one of several processes to all of them
            pipe.send(event["line"])
        else:
            on_event(event)
    status = child.wait()
    if received:
        finished = (status == 0 and result is not None) or _is_done(stage, first_line)
        how = "finished before it could stop" if finished else _unfinished(stage, error, received)
        raise Stopped(f"{stage}: {how}", received[0][0], finished)
    if status == 0 and result is not None:
        return result
    failure = monitor.failure(stage, status) if monitor and error is None else None
    raise failure or _failure(stage, status, error, log)


def _is_done(stage: str, request: dict[str, Any]) -> bool:
    """Whether the stage's result is there, whatever its process had time to report."""
    return (stage == "dataset" or stage in UPSTREAM) and not chain_of(request).why(stage)


def _unfinished(stage: str, error: dict[str, Any] | None, received: list[tuple[int, float]]) -> str:
    if error:
        return error["message"]
    how = "stopped at once" if _in_a_hurry(received) else "did not stop in time"
    return f"{how}, it resumes from its last checkpoint" if stage == "train" else f"{how}, it starts over next time"


def _failure(stage: str, status: int, error: dict[str, Any] | None, log: Path) -> errors.PipelineError:
    if error is not None and error["type"] in errors.BY_NAME:
        return errors.BY_NAME[error["type"]](error["message"])
    if error is not None:
        return errors.StageFailed(f"{stage} failed: {error['message']} (details in {log})")
    if status == EXIT_INTERRUPTED:
        return errors.Interrupted(f"{stage}: its process was stopped; run the same command again to resume")
    if status == -signal.SIGKILL:
        how = "was killed (SIGKILL: by the out-of-memory killer or by hand)"
    elif status < 0:
        how = f"died of {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status} and no result"
    last = _last_line(log)
    return errors.StageFailed(f"{stage}: its process {how}; last line of {log}: {last}")


def _events(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """The child's events as they come, and None a few times a second in between, until its output ends."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    os.set_blocking(descriptor, False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            ready = selector.select(timeout=0.2)
            if not ready:
                yield None
                if child.poll() is not None and not selector.select(timeout=0):
                    return  # ended, while something that it started still holds the pipe
                continue
            block = os.read(descriptor, 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value


class _Pipe:
    """The child's standard input. Nobody is waited for: a launcher may pass nothing on while its job is queued."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        self._descriptor = child.stdin.fileno()
        os.set_blocking(self._descriptor, False)
        self._rest = b""

    def send(self, line: str) -> None:
        """One line, now or as soon as there is room for it."""
        self._rest += line.encode() + b"\n"
        self.write()

    def heartbeat(self) -> None:
        """An empty line, unless others are still to be read."""
        if not self._rest:
            self.send("")

    def write(self) -> None:
        """As much as there is room for."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BlockingIOError:
            pass
        except OSError:  # it has ended in the meantime
            self._rest = b""


def _kill(child: subprocess.Popen[bytes], monitor: Monitor | None) -> None:
    if monitor:
        monitor.end(child)
    else:
        child.kill()


def _end(child: subprocess.Popen[bytes], monitor: Monitor | None) -> None:
    """Make sure that no process and no pipe of the child is left."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if monitor:
        monitor.stop(child)
    deadline = time.monotonic() + GRACE_SECONDS + 2  # its standard input ended: it stops by itself
    while child.poll() is None:
        if time.monotonic() > deadline:
            _kill(child, monitor)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)


@contextlib.contextmanager
def _signals() -> Iterator[list[tuple[int, float]]]:
    """Collect SIGINT and SIGTERM, with their times, instead of dying of them.

    Only the main thread can; elsewhere they stay as set.
    """
    received: list[tuple[int, float]] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda n, frame: received.append((n, time.monotonic()))) for number in numbers
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_a_hurry(received: list[tuple[int, float]]) -> bool:
    """True after a second Ctrl-C.

    Supervisors and wrappers deliver the same signal twice within milliseconds (to the process and to its group), and
    Luigi sends SIGTERM after Ctrl-C to the processes that it forked: neither is a second wish.
    """
    times = [moment for number, moment in received if number == signal.SIGINT]
    return bool(times) and times[-1] - times[0] > 0.2


def _remove_debris(folder: Path | None) -> None:
    """Remove what killed writers left in a stage's folder. Only while its lock is held."""
    for path in folder.glob(".*.tmp") if folder else ():
        with contextlib.suppress(OSError):
            path.unlink()


def end_with_parent() -> None:
    """In a process that Luigi forked for one task (`--workers 2`): get SIGTERM when the luigi command dies.

    Otherwise a `kill -9` of the command would leave it training, with nobody to report to.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    liveness.end_with_parent(parent.pid)


def _last_line(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            lines = collections.deque(file, maxlen=1)
        return lines[0].decode(errors="replace").strip() if lines else "(empty)"
    except OSError:
        return "(unreadable)"
