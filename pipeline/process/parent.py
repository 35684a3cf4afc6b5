"""The parent's side of a stage: the one function that starts a stage's process and follows it to its end.

Reads the child's events, passes commands and signals on, leaves the child's log behind. Never forks the work itself:
CUDA does not survive a fork, and a long step in a Luigi worker would starve its heartbeat.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.files import open_regular, remove_debris
from pipeline.process import liveness, pipes
from pipeline.process.child import EARLY, EXIT_INTERRUPTED, GRACE_SECONDS, chain_of, request
from pipeline.process.cores import misread_threads, thread_environment
from pipeline.process.launcher import command_line, own_environment
from pipeline.process.liveness import Monitor
from pipeline.workspace import manifest
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

#: The processes that were started early, by stage, each with this end of its standard input.
_early: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}


class Stopped(KeyboardInterrupt):
    """This process was asked to stop by `signal`, and the stage has ended, `finished` if its result was there first."""

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
    _refuse_links(stage, chain, log)
    log.parent.mkdir(parents=True, exist_ok=True)
    folder = chain.folder(stage)
    if folder and not folder.is_symlink():  # its lock is held: whoever wrote there is gone
        remove_debris(folder, "*")
    if stage == "train" and (misread := misread_threads(os.environ)):
        on_event({"event": "note", "message": misread})
    several = stage == "train" and chain.config.distributed.workers > 1
    monitor = Monitor(launcher, log) if launcher or several else None
    about = request(chain, stage, **(options or {}), **({"launched": True} if launcher else {}))
    if monitor:
        about |= {"heartbeat_seconds": liveness.HEARTBEAT_SECONDS, "watchdog_seconds": liveness.PARENT_TIMEOUT}
    words = module_command(MODULES[stage])
    if launcher:
        words = command_line(launcher, words, chain.workspace.root.absolute(), Path(__file__).resolve().parents[1])
    with os.fdopen(open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as log_file, _signals() as received:
        offset = os.fstat(log_file.fileno()).st_size
        process = None if monitor else _take_early(stage, [log_file.fileno(), *inherit])
        process = process or subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=environment(here=not launcher and not several),  # of several each gets its part of the cores
            pass_fds=tuple(inherit),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on in order
        )
        child = _Child(stage, about, log, process, monitor, received, offset)
        try:
            return child.follow(on_event, take_commands)
        finally:
            child.end()


def start_early(stage: str, chain: Chain) -> None:
    """Start the process of a stage that will run here soon: it imports what it needs while another one works.

    It is told the configured precision, because of which a training may need a second process.
    """
    if stage in _early:
        return
    with contextlib.suppress(OSError):  # then it starts when it is needed
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                module_command(MODULES[stage], EARLY, chain.config.training.precision),
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # until it is given its log
                env=environment(),
                start_new_session=True,
            )
        _early[stage] = process, ours


def end_early() -> None:
    """End the processes that were started early and have got no work."""
    while _early:
        _, (process, channel) = _early.popitem()
        channel.close()
        process.kill()
        process.wait()


def _take_early(stage: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes] | None:
    """The process that was started early for this stage, given its log and its locks; None without a living one."""
    if stage not in _early:
        return None
    process, channel = _early.pop(stage)
    try:
        socket.send_fds(channel, [b"\n"], descriptors)
    except OSError:
        channel.close()
        process.wait()
        return None
    process.stdin = os.fdopen(channel.detach(), "wb", 0)
    return process


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line of a process that is a module of this very package, whatever else is called `pipeline`."""
    return [sys.executable, str(Path(__file__).resolve().parents[1] / "start.py"), module, *arguments]


def environment(here: bool = True) -> dict[str, str]:
    """The environment of a stage's process, `here` or on a machine that a launcher chooses."""
    # Elsewhere the node decides about threads. One of several processes that fails must not leave the others.
    threads = thread_environment(os.environ) if here else {"SLURM_KILL_BAD_EXIT": "1"}
    return {**own_environment(os.environ), **threads, "PYTHONUNBUFFERED": "1"}


@dataclass
class _Child:
    """A stage's process, followed to its end."""

    stage: str
    request: dict[str, Any]
    log: Path
    process: subprocess.Popen[bytes]
    monitor: Monitor | None
    #: The signals that this process has got, with their times.
    received: list[tuple[int, float]]
    #: Where its lines begin in the log.
    offset: int = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    def follow(
        self, on_event: Callable[[dict[str, Any]], None], take_commands: Callable[[], Iterable[str]]
    ) -> dict[str, Any]:
        """Pass commands down and events up until the process ends; gives its result."""
        monitor = self.monitor
        pipe = pipes.Input(self.process)
        pipe.send(json.dumps(self.request))
        asked_at: float | None = None
        for event in pipes.events(self.process):
            pipe.flush()
            if self.received and asked_at is None:
                asked_at = time.monotonic()
                pipe.send("stop")
                if monitor:
                    monitor.stop(self.process)
            if self.hurry or (asked_at is not None and time.monotonic() - asked_at > GRACE_SECONDS + 2):
                self.kill()
            for line in take_commands():
                pipe.send(line)
            if monitor:
                if monitor.heartbeat_due():
                    pipe.heartbeat()
                event = monitor.attend(event, self.process)
            if event is None:
                continue
            if event.get("event") == "result":
                self.result = event["value"]
            elif event.get("event") == "error":
                self.error = self.error or event  # of several processes the first one tells the cause
            elif event.get("event") == "broadcast":  # from one of several processes to all of them
                pipe.send(event["line"])
            else:
                on_event(event)
        return self.outcome(self.process.wait())

    def outcome(self, status: int) -> dict[str, Any]:
        """The result of the process that has ended, or the error that says why there is none."""
        result = self.result if status == 0 else None
        if self.received:
            finished = result is not None or self.is_done()
            how = "finished before it could stop" if finished else self.unfinished()
            raise Stopped(f"{self.stage}: {how}", self.received[0][0], finished)
        if result is None and status == 0 and self.error is None and self.is_done():
            # Of a long line that a launcher passes on, another task's line can cut the middle.
            folder = chain_of(self.request).folder(self.stage)
            result = manifest.read(folder) if folder else None
        if result is not None:
            return result
        failure = self.monitor.failure(self.stage, status) if self.monitor and self.error is None else None
        raise failure or self.failure(status)

    @property
    def hurry(self) -> bool:
        """True after a second Ctrl-C.

        Supervisors and wrappers deliver the same signal twice within milliseconds (to the process and to its group),
        and Luigi sends SIGTERM after Ctrl-C to the processes that it forked: neither is a second wish.
        """
        times = [moment for number, moment in self.received if number == signal.SIGINT]
        return bool(times) and times[-1] - times[0] > 0.2

    def is_done(self) -> bool:
        """Whether the stage's result is there, whatever its process had time to report."""
        known = self.stage == "dataset" or self.stage in UPSTREAM
        return known and not chain_of(self.request).why(self.stage)

    def unfinished(self) -> str:
        """How the stage was stopped without a result."""
        if self.error:
            return self.error["message"]
        how = "stopped at once" if self.hurry else "did not stop in time"
        return (
            f"{how}; the next run {'resumes from its last checkpoint' if self.stage == 'train' else 'starts it over'}"
        )

    def failure(self, status: int) -> errors.PipelineError:
        """Why there is no result, though nobody asked to stop."""
        stage, error = self.stage, self.error
        if error is not None and error["type"] in errors.BY_NAME:
            return errors.BY_NAME[error["type"]](error["message"])
        if error is not None:
            return errors.StageFailed(f"{stage} failed: {error['message']} (details in {self.log})")
        if status == EXIT_INTERRUPTED:
            return errors.Interrupted(f"{stage}: its process was stopped; run the same command again to resume")
        if status == -signal.SIGKILL:
            how = "was killed (SIGKILL: by the out-of-memory killer or by hand)"
        elif status < 0:
            how = f"died of {liveness.signal_name(-status)}"
        else:
            how = f"ended with status {status} and no result"
        last = liveness.last_line(self.log, self.offset) or "(none)"
        return errors.StageFailed(f"{stage}: its process {how}; last line of {self.log}: {last}")

    def kill(self) -> None:
        """End the process at once."""
        if self.monitor:
            self.monitor.end(self.process)
        else:
            self.process.kill()

    def end(self) -> None:
        """Make sure that no process and no pipe of the child is left."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self.monitor:
            self.monitor.stop(self.process)
        deadline = time.monotonic() + GRACE_SECONDS + 2  # its standard input ended: it stops by itself
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.5)


@contextlib.contextmanager
def _signals() -> Iterator[list[tuple[int, float]]]:
    """Collect SIGINT and SIGTERM, with their times, instead of dying of them; only the main thread can."""
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


def _refuse_links(stage: str, chain: Chain, log: Path) -> None:
    """Raise `WorkspaceError` where a stage would write through a link: in a shared workspace anybody may plant one."""
    run = chain.run()
    # A finished data set may be one.
    places = [run.root.parent, run.root, run.stage(stage)] if run and stage != "dataset" else []
    for place in [log.parent] if stage == "compare" else places:
        if place.is_symlink():
            what = f"a symbolic link; {stage} writes through none"
            raise errors.WorkspaceError(f"{place}: {what}: put the folder itself there")


def end_with_parent() -> None:
    """In a process that Luigi forked for one task (`--workers 2`): get SIGTERM when the luigi command dies.

    Otherwise a `kill -9` of the command would leave it training, with nobody to report to.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    liveness.end_with_parent(parent.pid)
