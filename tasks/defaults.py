"""What all tasks share: exit codes, the log, what they ask of the `luigi` command that runs them, `[vgg]` of luigi.cfg.

Acts on nothing when it is imported: `tasks.command` says when the tasks have the command to themselves.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import luigi
from luigi.configuration import get_config
from luigi.worker import TaskProcess

from pipeline.errors import from_os_error
from pipeline.process.parent import Stopped

#: Luigi's own defaults are 0 for all of these, even for a failed task.
RETURN_CODES = {
    "already_running": 10,
    "missing_data": 20,
    "not_run": 25,
    "task_failed": 30,
    "scheduling_error": 35,
    "unhandled_exception": 40,
}

#: Exit codes that Luigi has no name for.
BAD_CONFIGURATION = 2
NOT_DONE = 3
DAMAGED = 4
REFUSED = 5
UNHEALTHY = 6

log = logging.getLogger("vgg")
log.parent = logging.getLogger("luigi-interface")  # in another program our messages go where Luigi's go

#: Whether a code was asked for, and which; None unless the `luigi` command runs for this plugin. Shared memory: with
#: --workers 2 and more, tasks run in forked processes.
_asked_for: mmap.mmap | None = None


def take_the_command() -> None:
    """From now on the tasks say how this process ends, as it is the `luigi` command and runs for them."""
    global _asked_for
    _asked_for = mmap.mmap(-1, 2)


def is_command() -> bool:
    """Whether this is the `luigi` command and runs for this plugin, or a process that it forked for a task."""
    return _asked_for is not None


def asked_for() -> int | None:
    """The exit code that was asked for."""
    return _asked_for[1] if _asked_for is not None and _asked_for[0] else None


def exit_with(code: int) -> None:
    """Let the `luigi` command end with this code, whatever Luigi would make of it. The first one asked for stays.

    Luigi knows only its own categories and cannot be told from inside a task. Does nothing in another program.
    """
    if _asked_for is not None and not _asked_for[0]:
        _asked_for[:] = bytes((1, min(code, 255)))


def return_code(category: str) -> int:
    """The exit code for one of Luigi's own categories: the user's, else this plugin's."""
    return get_config().getint("retcode", category, RETURN_CODES[category])


def forked_for_a_task() -> bool:
    """Whether Luigi forked this process to run one task in it (`--workers 2`)."""
    return isinstance(multiprocessing.current_process(), TaskProcess)


def take_signals() -> None:
    """Let SIGTERM end the `luigi` command as Ctrl-C does, so that Luigi ends the processes that it forked.

    While a stage runs in this very process, `launch.run_stage` takes the signals. Does nothing in another program.
    """
    if threading.current_thread() is not threading.main_thread() or not is_command():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    if multiprocessing.parent_process():  # forked for one task, which has not started its work
        os._exit(128 + number)
    exit_with(128 + number)
    raise Stopped("stopped on request", number)


def ask_for_no_more_work() -> None:
    """Let this command end once what is running is done."""
    if is_command() and callable(signal.getsignal(signal.SIGUSR1)):
        parent = multiprocessing.parent_process()
        os.kill(parent.pid if parent and parent.pid else os.getpid(), signal.SIGUSR1)  # Luigi's own way to ask


@contextlib.contextmanager
def scheduling() -> Iterator[None]:
    """Around a task's `complete`: what the operating system says becomes an expected error."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "look at the workspace") from error


class vgg(luigi.Config):  # noqa: N801 (the section's name in luigi.cfg)
    """Section `[vgg]` of luigi.cfg."""

    workspace = luigi.Parameter(default="artifacts", description="--workspace of all tasks, for example /data/vgg")
    config = luigi.Parameter(
        default="config/vgg11.yaml", description="--config of all tasks, for example /etc/vgg/nightly.yaml"
    )
    overlap = luigi.ChoiceParameter(
        choices=["leave", "wait"],
        default="leave",
        description="when another process works on the same stage: leave at once (exit code 10) or wait for it",
    )
    cache = luigi.Parameter(
        default="",
        description="for a workspace in a store (s3://…): the folder for copies here and work in progress; default: "
        "luigi-vgg in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)",
    )
    patience_seconds = luigi.FloatParameter(
        default=60.0, description="for how long a request that a store does not answer rightly is tried again"
    )
    stale_seconds = luigi.FloatParameter(
        default=120.0,
        description="after how many silent seconds another host's lock in a store counts as left behind; at "
        "least twice patience_seconds",
    )
    report_seconds = luigi.FloatParameter(
        default=2.0, description="seconds between two progress reports to the scheduler"
    )
    launcher = luigi.Parameter(
        default="",
        description="in place of the configuration's launcher: a file that holds one, or the words of its command; "
        "none for none",
    )
