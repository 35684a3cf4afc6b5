"""What this plugin asks of Luigi by default: exit codes that tell the truth, and logs that people can read.

Acts when it is imported, which Luigi does before it reads these settings. Whatever the user's own luigi.cfg or
command line says wins.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.worker import TaskProcess, worker

from pipeline.errors import PipelineError, from_os_error
from pipeline.launch import Stopped
from pipeline.stage import GRACE_SECONDS

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

#: Whether a code was asked for, and which. Shared memory: with --workers 2 and more, tasks run in forked processes.
_asked_for = mmap.mmap(-1, 2)


def exit_with(code: int) -> None:
    """Let the `luigi` command end with this code, whatever Luigi would make of it. The first one asked for stays.

    Luigi knows only its own categories and cannot be told from inside a task. Does nothing in a program that uses
    the tasks through `luigi.build`.
    """
    if _on_command_line() and not _asked_for[0]:
        _asked_for[:] = bytes((1, min(code, 255)))


def return_code(category: str) -> int:
    """The exit code for one of Luigi's own categories: the user's, else this plugin's."""
    return get_config().getint("retcode", category, RETURN_CODES[category])


def take_signals() -> None:
    """Let SIGTERM end the `luigi` command as Ctrl-C does, so that Luigi ends the processes that it forked.

    While a stage runs in this very process, `launch.run_stage` takes the signals. Does nothing in a program that uses
    the tasks through `luigi.build`, or that handles a signal itself.
    """
    if threading.current_thread() is not threading.main_thread() or not _on_command_line():
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
    """Under `[worker] keep_alive`: let this command end once what is running is done."""
    if worker().keep_alive and callable(signal.getsignal(signal.SIGUSR1)):
        parent = multiprocessing.parent_process()
        os.kill(parent.pid if parent and parent.pid else os.getpid(), signal.SIGUSR1)  # Luigi's own way to ask


def _on_command_line() -> bool:
    return CmdlineParser.get_instance() is not None


def _leave() -> None:
    for process in multiprocessing.active_children():
        if isinstance(process, TaskProcess):
            process.join(timeout=GRACE_SECONDS + 5)  # it is writing its checkpoint
    if _asked_for[0]:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_asked_for[1])


class _OneLine(logging.Filter):
    """Expected failures as one line without a traceback; Luigi's chatter only when it was asked for."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.exc_info and error is None:  # Luigi asks for a traceback where there is none
            record.exc_info = record.exc_text = None
        if isinstance(error, PipelineError):
            record.msg, record.args = "%s", (str(error),)
            record.exc_info = record.exc_text = None
        elif _RESULT_OF_SCHEDULING.get("error") and "Will not run" in record.getMessage():
            record.msg, record.args = "%s", (_RESULT_OF_SCHEDULING.pop("error"),)
        if _quiet and record.levelno < logging.WARNING:
            # The summary of a run in which everything went well says nothing that our own lines did not say.
            message = record.getMessage()
            return "Luigi Execution Summary" in message and ":)" not in message
        return True


#: The expected error that a task's `complete` or `requires` met: Luigi logs only its formatted traceback.
_RESULT_OF_SCHEDULING: dict[str, str] = {}


@contextlib.contextmanager
def scheduling() -> Iterator[None]:
    """Around a task's `complete`: remember the one line for an error that Luigi is about to log as a traceback."""
    try:
        yield
    except OSError as error:
        told = from_os_error(error, "look at the workspace")
        _RESULT_OF_SCHEDULING["error"] = str(told)
        raise told from error
    except PipelineError as error:
        _RESULT_OF_SCHEDULING["error"] = str(error)
        raise


def _is_set(section: str, option: str) -> bool:
    return get_config().has_option(section, option)


def _set_return_codes() -> None:
    for name, code in RETURN_CODES.items():
        if not _is_set("retcode", name):
            get_config().set("retcode", name, str(code))
            continue
        found = get_config().get("retcode", name)
        # Luigi reads them for its command only, and shows a traceback, before any task is made.
        if not found.strip().isdecimal() and os.path.basename(sys.argv[0]) in ("luigi", "__main__.py"):
            advice = "expected a whole number; a comment needs a line of its own"
            log.error("luigi.cfg: [retcode] %s: found %r, %s", name, found, advice)
            raise SystemExit(BAD_CONFIGURATION)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stderr` is at the moment: a progress bar replaces it to keep lines above itself."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


def _leave_locking_to_the_workspace() -> None:
    # Luigi's own lock goes by the command line alone: it would refuse the same command in another folder, and
    # know nothing of `[vgg] overlap`.
    if not _is_set("core", "no_lock"):
        get_config().set("core", "no_lock", "true")


def _set_up_logging() -> None:
    # Only a message of ours is a message for people; Luigi's stay a --log-level away.
    for name in ("luigi-interface", "luigi"):
        logging.getLogger(name).addFilter(_filter)
    # Luigi warns of the very keys that its documentation names: default-scheduler-url, -host, -port.
    warnings.filterwarnings("ignore", ".*'default_scheduler_.*not consumed by the task 'core'")
    if not log.handlers:
        handler = _Stderr()
        formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def _wants_luigi_messages() -> bool:
    given = any(argument.startswith("--log-level") or argument.startswith("--logging") for argument in sys.argv)
    return given or _is_set("core", "log_level") or _is_set("core", "logging_conf_file")


def _excepthook(kind: type[BaseException], error: BaseException, traceback: object) -> None:
    if isinstance(error, KeyboardInterrupt):
        log.error("%s", str(error) or "stopped")
    else:
        sys.__excepthook__(kind, error, traceback)  # type: ignore[arg-type]


_quiet = not _wants_luigi_messages()
_filter = _OneLine()
_set_up_logging()
_set_return_codes()
_leave_locking_to_the_workspace()
sys.excepthook = _excepthook
atexit.register(_leave)


class vgg(luigi.Config):  # noqa: N801 (the section's name in luigi.cfg)
    """Section `[vgg]` of luigi.cfg."""

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
        default=90.0, description="after how many silent seconds another host's lock in a store counts as left behind"
    )
    report_seconds = luigi.FloatParameter(
        default=2.0, description="seconds between two progress reports to the scheduler"
    )
    launcher = luigi.Parameter(
        default="",
        description="in place of the configuration's launcher: a file that holds one, or the words of its command; "
        "none for none",
    )
