"""Logging of the `luigi` command: this plugin's messages as plain lines, expected errors as one, Luigi's on request."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any

from luigi.configuration import get_config

from pipeline.errors import PipelineError
from pipeline.text import printable
from tasks import scheduler
from tasks.exit_codes import is_command
from tasks.log import log
from tasks.notification import ERRORS, in_one_line, without_traceback
from tasks.stage import StageTask


def shorten_error(record: logging.LogRecord) -> bool:
    """Logging filter: replace the traceback of an expected error with one line. Drops no record."""
    error = record.exc_info[1] if record.exc_info else None
    if record.exc_info and error is None:  # Luigi sets exc_info outside an except block, too
        record.exc_info = record.exc_text = None
    if isinstance(error, PipelineError):
        # The last argument of Luigi's message is the task.
        task = record.args[-1] if isinstance(record.args, tuple) and record.args else None
        text = in_one_line(task, str(error)) if isinstance(task, StageTask) else str(error)
        record.msg, record.args = "%s", (text,)
        record.exc_info = record.exc_text = None
    elif str(record.msg).startswith("Will not run"):
        # For an error in `complete` or `requires`, Luigi logs the formatted traceback, which ends with the error.
        kinds = ERRORS if is_command() else r"pipeline\.[\w.]+"
        record.msg, record.args = "%s", (without_traceback(record.getMessage(), kinds),)
    return True


def _quiet(record: logging.LogRecord) -> bool:
    """Logging filter: drop Luigi's messages below WARNING.

    Keeps the summary of a run with problems, except for maintenance tasks: otherwise it repeats our own lines.
    """
    if record.levelno >= logging.WARNING:
        return True
    message = record.getMessage()
    return "Luigi Execution Summary" in message and ":)" not in message and not scheduler.scheduler_skipped()


class _Formatter(logging.Formatter):
    """Formats one line per message and escapes control characters, also in tracebacks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the standard library's name)
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return printable(super().formatException(ei), lines=True)


def set_up() -> None:
    """Set up the log of the `luigi` command. Luigi's own messages need `--log-level`."""
    if not _wants_luigi_messages():
        for name in ("luigi-interface", "luigi"):
            logging.getLogger(name).addFilter(_quiet)
    # Luigi warns about keys that its own documentation recommends: default-scheduler-url, -host, -port.
    warnings.filterwarnings("ignore", ".*'default_scheduler_.*not consumed by the task 'core'")
    # Looks up `sys.stderr` for each record: the progress bar replaces it to keep log lines above itself.
    handler = logging._StderrHandler()  # type: ignore[attr-defined]
    formatter = _Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _wants_luigi_messages() -> bool:
    given = any(argument.startswith(("--log-level", "--logging")) for argument in sys.argv)
    return given or get_config().has_option("core", "log_level") or get_config().has_option("core", "logging_conf_file")
