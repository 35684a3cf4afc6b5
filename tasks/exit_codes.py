"""How the `luigi` command ends: its exit codes, and the one that a task asks for. Does nothing in another program."""

from __future__ import annotations

import mmap

from luigi.configuration import get_config

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
