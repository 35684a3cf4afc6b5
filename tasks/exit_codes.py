"""Exit codes of the `luigi` command, and how a task requests one. In any other program a request has no effect."""

from __future__ import annotations

import mmap
import sys

from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.retcodes import run_with_retcodes

#: Defaults for `[retcode]`. Luigi's own are all 0, even for a failed task.
RETURN_CODES = {
    "already_running": 10,
    "missing_data": 20,
    "not_run": 25,
    "task_failed": 30,
    "scheduling_error": 35,
    "unhandled_exception": 40,
}

#: Exit codes without a category in Luigi.
BAD_CONFIGURATION = 2
NOT_DONE = 3
DAMAGED = 4
REFUSED = 5
UNHEALTHY = 6

#: Requested by tasks that succeeded; the code of a failure takes precedence.
OVERRIDABLE = (NOT_DONE, REFUSED, UNHEALTHY)

#: Two bytes: whether a code was requested, and the code; None unless the `luigi` command runs this plugin. Shared
#: memory, because with several workers tasks run in forked processes.
_requested: mmap.mmap | None = None


def claim_command() -> None:
    """Mark this process as the `luigi` command running this plugin: from now on its tasks set the exit code."""
    global _requested
    _requested = mmap.mmap(-1, 2)


def is_command() -> bool:
    """Whether this is the `luigi` command running this plugin, or a process that it forked for a task."""
    return _requested is not None


def command_module() -> str | None:
    """The `--module` that the `luigi` command is importing right now; None in any other program.

    Inspects the call stack, not the program's name: `luigi`, `python -m luigi`, a debugger or a wrapper around them
    all go through `run_with_retcodes`, which exits the process.
    """
    module = None
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is CmdlineParser._attempt_load_module.__code__:
            module = frame.f_locals["known_args"].core_module
        elif frame.f_code is run_with_retcodes.__code__:
            return module or ""
    return None


def requested_exit_code() -> int | None:
    return _requested[1] if _requested is not None and _requested[0] else None


def request_exit_code(code: int) -> None:
    """Make the `luigi` command exit with `code`. The first request wins, unless its code is `OVERRIDABLE`."""
    if _requested is not None and (not _requested[0] or _requested[1] in OVERRIDABLE):
        _requested[:] = bytes((1, min(code, 255)))


def return_code(category: str) -> int:
    """Return the exit code for one of Luigi's categories: `--retcode-…`, `[retcode]`, or this plugin's default."""
    given = getattr(getattr(CmdlineParser.get_instance(), "known_args", None), f"retcode_{category}", None)
    return int(given) if given is not None else get_config().getint("retcode", category, RETURN_CODES[category])
