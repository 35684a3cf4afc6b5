"""The parent's side of a stage: `run_stage` starts the stage's process and follows it until it exits.

Reads the child's events, and forwards commands and signals. Never runs the work in this process or a fork of it: CUDA
does not survive a fork, and a long step in a Luigi worker would starve its heartbeat.
"""

from __future__ import annotations

import contextlib
import json
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
from pipeline.process.child import EARLY, EXIT_INTERRUPTED, GRACE_SECONDS, chain_from, request
from pipeline.process.cores import ignored_threads_warning, thread_environment
from pipeline.process.launcher import clean_environment, command_line
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

#: Processes started early, by stage, each with our end of its standard input.
_early: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}


class Stopped(KeyboardInterrupt):
    """`signal` asked this process to stop, and the stage has ended; `finished` if it completed nevertheless."""

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
    """Run one stage in its own process and return its result.

    `launcher` is put in front of the command (see `launcher`). `take_commands` is polled a few times a second for
    commands to the child (see `reporter.COMMANDS`). The child inherits the file descriptors (locks) in `inherit`.
    Raises the `PipelineError` that the child reported, `StageFailed` if it died without one, and `Stopped` if this
    process received SIGTERM or SIGINT; a second SIGINT (Ctrl-C) kills the child at once.
    """
    _refuse_links(stage, chain, log)
    log.parent.mkdir(parents=True, exist_ok=True)
    folder = log.parent if stage == "compare" else chain.folder(stage)
    if folder and not folder.is_symlink():  # we hold its lock, so earlier writers are gone
        remove_debris(folder, "*")
    if stage == "train" and (warning := ignored_threads_warning(os.environ)):
        on_event({"event": "note", "message": warning})
    distributed = stage == "train" and chain.config.distributed.workers > 1
    monitor = Monitor(launcher, log) if launcher or distributed else None
    message = request(chain, stage, **(options or {}), **({"launched": True} if launcher else {}))
    if monitor:
        message |= {"heartbeat_seconds": liveness.HEARTBEAT_SECONDS, "watchdog_seconds": liveness.PARENT_TIMEOUT}
    command = module_command(MODULES[stage])
    if launcher:
        command = command_line(launcher, command, chain.workspace.root.absolute(), Path(__file__).resolve().parents[1])
    with os.fdopen(open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as log_file, _signals() as received:
        offset = os.fstat(log_file.fileno()).st_size
        process = None if monitor else _take_early(stage, [log_file.fileno(), *inherit])
        process = process or subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=environment(local=not launcher and not distributed),  # a supervisor divides the cores itself
            pass_fds=tuple(inherit),
            start_new_session=True,  # Ctrl-C reaches only this process, which forwards it
        )
        child = _Child(stage, message, log, process, monitor, received, offset)
        try:
            return child.follow(on_event, take_commands)
        finally:
            child.end()


def start_early(stage: str, chain: Chain) -> None:
    """Start the process of a stage that will run here soon, so that its imports overlap with the current stage."""
    if stage in _early:
        return
    with contextlib.suppress(OSError):  # `run_stage` then starts it
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # with precision auto, a training starts its measurement early, too
                module_command(MODULES[stage], EARLY, chain.config.training.precision),
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # until it receives its log
                env=environment(),
                start_new_session=True,
            )
        _early[stage] = process, ours


def end_early() -> None:
    """Kill the processes that were started early but never used."""
    while _early:
        _, (process, channel) = _early.popitem()
        channel.close()
        process.kill()
        process.wait()


def _take_early(stage: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes] | None:
    """Pass log and locks to the process started early for this stage and return it; None if none is alive."""
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
    """Command line that runs a module of this package, even if another package named `pipeline` is on the path."""
    return [sys.executable, str(Path(__file__).resolve().parents[1] / "start.py"), module, *arguments]


def environment(local: bool = True) -> dict[str, str]:
    """Environment of a stage's process. Unless `local` (no launcher, one worker), leaves the number of threads open."""
    # A remote node chooses its own number of threads. If one task of a job fails, Slurm must end the others.
    extra = thread_environment(os.environ) if local else {"SLURM_KILL_BAD_EXIT": "1"}
    return {**clean_environment(os.environ), **extra, "PYTHONUNBUFFERED": "1"}


@dataclass
class _Child:
    stage: str
    request: dict[str, Any]
    log: Path
    process: subprocess.Popen[bytes]
    monitor: Monitor | None
    #: Signals that this process received, with their times.
    received: list[tuple[int, float]]
    #: Where the child's lines begin in the log.
    offset: int
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    def follow(
        self, on_event: Callable[[dict[str, Any]], None], take_commands: Callable[[], Iterable[str]]
    ) -> dict[str, Any]:
        """Pass commands down and events up until the process exits; return its result."""
        monitor = self.monitor
        pipe = pipes.Input(self.process)
        pipe.send(json.dumps(self.request))
        stop_sent: float | None = None
        for event in pipes.events(self.process):
            pipe.flush()
            if self.received and stop_sent is None:
                stop_sent = time.monotonic()
                pipe.send("stop")
                if monitor:
                    monitor.stop(self.process)
            if self.forced or (stop_sent is not None and time.monotonic() - stop_sent > GRACE_SECONDS + 2):
                self.kill()
            for line in take_commands():
                pipe.send(line)
            if monitor:
                if monitor.heartbeat_due():
                    pipe.heartbeat()
                event = monitor.filter(event, self.process)
            if event is None:
                continue
            if event.get("event") == "result":
                self.result = event["value"]
            elif event.get("event") == "error":
                self.error = self.error or event  # the first error of several processes is the cause
            elif event.get("event") == "broadcast":  # from one process of several to all of them
                pipe.send(event["line"])
            else:
                on_event(event)
        return self.outcome(self.process.wait())

    def outcome(self, status: int) -> dict[str, Any]:
        """Return the result of the process that exited with `status`, or raise an error if there is none."""
        result = self.result if status == 0 else None
        if self.received:
            finished = result is not None or self.is_done()
            how = "finished before it could stop" if finished else self.unfinished()
            raise Stopped(f"{self.stage}: {how}", self.received[0][0], finished)
        if result is None and status == 0 and self.error is None and self.is_done():
            # A launcher may have garbled the result's long line with another task's output.
            folder = chain_from(self.request).folder(self.stage)
            result = manifest.read(folder) if folder else None
        if result is not None:
            return result
        failure = self.monitor.failure(self.stage, status) if self.monitor and self.error is None else None
        raise failure or self.failure(status)

    @property
    def forced(self) -> bool:
        """Whether the user pressed Ctrl-C a second time."""
        # Wrappers may deliver one SIGINT twice within milliseconds (to the process and to its group), and Luigi sends
        # SIGTERM after Ctrl-C to the processes that it forked: neither is a second Ctrl-C.
        times = [moment for number, moment in self.received if number == signal.SIGINT]
        return bool(times) and times[-1] - times[0] > 0.2

    def is_done(self) -> bool:
        """Whether the stage's result exists, even if its process did not report it."""
        known = self.stage == "dataset" or self.stage in UPSTREAM
        return known and not chain_from(self.request).why(self.stage)

    def unfinished(self) -> str:
        """How the stage stopped without a result, and what the next run does."""
        if self.error:
            return self.error["message"]
        how = "stopped at once" if self.forced else "did not stop in time"
        return (
            f"{how}; the next run {'resumes from its last checkpoint' if self.stage == 'train' else 'starts it over'}"
        )

    def failure(self, status: int) -> errors.PipelineError:
        """The error for a process that exited without a result and without a stop request."""
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
            how = f"was killed by {liveness.signal_name(-status)}"
        else:
            how = f"exited with status {status} and no result"
        last = liveness.last_line(self.log, self.offset) or "(none)"
        return errors.StageFailed(f"{stage}: its process {how}; last line of {self.log}: {last}")

    def kill(self) -> None:
        if self.monitor:
            self.monitor.end(self.process)
        else:
            self.process.kill()

    def end(self) -> None:
        """Close the child's pipes and wait for its process to exit; kill it if it takes too long."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self.monitor:
            self.monitor.stop(self.process)
        deadline = time.monotonic() + GRACE_SECONDS + 2  # it stops by itself, as its standard input is closed
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.5)


@contextlib.contextmanager
def _signals() -> Iterator[list[tuple[int, float]]]:
    """Collect SIGINT and SIGTERM with their times, instead of dying. Does nothing outside the main thread."""
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
    """Raise `WorkspaceError` if a stage would write through a symbolic link, which others may plant in a workspace."""
    run = chain.run()
    if stage == "compare":
        folders = [log.parent]
    elif run and stage != "dataset":  # whose finished folder may be a link; `dataset.store` refuses to write through it
        folders = [run.root.parent, run.root, run.stage(stage)]
    else:
        folders = []
    for folder in folders:
        if folder.is_symlink():
            raise errors.WorkspaceError(
                f"{folder}: found a symbolic link, through which {stage} must not write: replace it with a folder"
            )
