"""Notifications to an operator: `[vgg] notify` and Luigi's e-mails. A failure to deliver is logged, never raised."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

from luigi import notifications

from pipeline import address
from pipeline.files import now
from pipeline.text import cause, printable
from tasks.log import log
from tasks.settings import vgg

#: Time limit of the command. The chain waits for it so that its output is logged before the chain ends.
LIMIT_SECONDS = 30.0

#: What the command may print, in bytes: its output goes to a file, which a runaway command would fill the disk with.
LIMIT_BYTES = 1_000_000

#: Names of this plugin's errors and of those about parameters, as a traceback writes them.
ERRORS = r"pipeline\.[\w.]+|luigi\.parameter\.\w+"


def reason(text: str) -> str:
    """The cause of a failure: the last line of a message or formatted traceback."""
    return printable((without_traceback(text).strip().splitlines() or ["unknown error"])[-1])


def without_traceback(text: str, kinds: str = ERRORS) -> str:
    """Reduce a formatted traceback to its error if that is one of these kinds; else return it unchanged."""
    ours = re.search(rf"\n(?:{kinds}): (.*)\s*\Z", text)
    return ours[1] if ours else text


def notify_failure(task: Any, text: str) -> None:
    """Report a failed task to `[vgg] notify`; `text` is its message or traceback."""
    fields = {"task": task.task_family, **getattr(task, "notification_fields", {})}
    message = reason(text)
    notify("failed", in_one_line(task, message), **fields, message=message)


def in_one_line(task: Any, text: str) -> str:
    """Prefix an error message with the task's name, unless it already contains it."""
    name = getattr(task, "display_name", task.task_family)
    return text if name in text else f"{name}: {text.removeprefix(f'{name.split()[0]}: ')}"


def notify(event: str, line: str, **fields: Any) -> None:
    """Pass an event to the `[vgg] notify` command as JSON on standard input; `line` describes it to people."""
    command = vgg().notify
    if not command:
        return
    host = socket.gethostname()
    payload = {"text": f"{event} on {host}: {line}", "time": now(), "event": event, "host": host, **fields}
    payload = {key: _clean(value) if isinstance(value, str) else value for key, value in payload.items()}
    try:
        problem, output = _run(command, json.dumps(payload))
    except OSError as error:
        problem, output = f"cannot be run ({error.strerror})", ""
    output = _clean(" ".join(output.split()))[:500]
    if problem:  # the command itself is not logged: it may contain a token
        log.warning("[vgg] notify: %r was not delivered: the command %s%s", event, problem, output and f": {output}")
    elif output:
        log.info("[vgg] notify: %s", output)


def send_email(task: Any, text: str) -> None:
    """Send Luigi's error e-mail, if luigi.cfg configures one, with the cause as subject and first line."""
    headline = _clean(in_one_line(task, reason(text)))
    secret = vgg().notify or "\0"
    command = subprocess.list2cmdline([address.redact(word.replace(secret, "…")) for word in sys.argv])
    text = without_traceback(text)
    traceback = text if "Traceback" in text else ""
    subject = f"failed on {socket.gethostname()}: {headline.partition('; ')[0]}"[:200]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Luigi warns about its own defaults
            first = html.escape(headline) if notifications.email().format == "html" else headline
            message = notifications.format_task_error(first, task, command, traceback)
            notifications.send_error_email(subject, message, task.owner_email)
    except Exception as error:  # a bad option, an invalid address, a missing package
        log.warning("[email]: no e-mail was sent: %s", cause(error))


def _run(command: str, content: str) -> tuple[str, str]:
    """Run the command with `content` as input. Returns what went wrong (empty if nothing) and its output."""
    with tempfile.TemporaryFile() as output:  # not a pipe: a background process could keep that open
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        unsent: bytes | None = content.encode() + b"\n"
        deadline, problem = time.monotonic() + LIMIT_SECONDS, ""
        try:
            while process.returncode is None and not problem:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(unsent, timeout=0.1)
                unsent = None  # the next call goes on with the rest of it
                if process.returncode is not None:
                    problem = f"exited with status {process.returncode}" if process.returncode else ""
                elif os.fstat(output.fileno()).st_size > LIMIT_BYTES:
                    problem = f"printed over {LIMIT_BYTES // 1_000_000} MB and was killed"
                elif time.monotonic() > deadline:
                    problem = f"did not end within {LIMIT_SECONDS:.0f} s and was killed"
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return problem, output.read(10_000).decode(errors="replace")


def _clean(text: str) -> str:
    return printable(address.redact(text))
