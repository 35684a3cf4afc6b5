"""How the `luigi` command ends: its exit codes, and the one that a task asks for. Does nothing in another program."""

from __future__ import annotations

import mmap
import sys

from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.retcodes import run_with_retcodes

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

#: Those of a task that is done: what went wrong with another one says more.
MILD = (NOT_DONE, REFUSED, UNHEALTHY)

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


def module_of_the_command() -> str | None:
    """The `--module` that the `luigi` command is importing at this moment; None when this is another program.

    Found in the call stack, not by the program's name: `luigi`, `python -m luigi`, a debugger or a
    wrapper around them all go through `run_with_retcodes`, which ends the process (`sys.exit`).
    """
    module = None
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is CmdlineParser._attempt_load_module.__code__:
            module = frame.f_locals["known_args"].core_module
        elif frame.f_code is run_with_retcodes.__code__:
            return module or ""
    return None


def asked_for() -> int | None:
    """The exit code that was asked for."""
    return _asked_for[1] if _asked_for is not None and _asked_for[0] else None


def exit_with(code: int) -> None:
    """Let the `luigi` command, and no other program, end with this code instead of Luigi's; the first one stays,
    unless it is `MILD`.
    """
    if _asked_for is not None and (not _asked_for[0] or _asked_for[1] in MILD):
        _asked_for[:] = bytes((1, min(code, 255)))


def return_code(category: str) -> int:
    """The exit code for one of Luigi's own categories: the user's, else this plugin's."""
    return get_config().getint("retcode", category, RETURN_CODES[category])
