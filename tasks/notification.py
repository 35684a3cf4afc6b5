"""Telling an operator: `[vgg] notify` and Luigi's e-mails. What goes wrong with them is logged and stops nothing."""

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
import warnings
from typing import Any

from luigi import notifications

from pipeline import address
from pipeline.files import now
from pipeline.text import cause, printable
from tasks.log import log
from tasks.settings import vgg

#: How long the command may take. The chain waits for it, so that its output is in the log before the chain ends.
LIMIT_SECONDS = 30.0


def reason(text: str) -> str:
    """Why something failed, in one line, out of a message or a formatted traceback."""
    return printable((without_traceback(text).strip().splitlines() or ["unknown error"])[-1])


def without_traceback(text: str) -> str:
    """Of a formatted traceback that ends with an error of this plugin or of a parameter that error alone."""
    ours = re.search(r"\n(?:pipeline\.[\w.]+|luigi\.parameter\.\w+): (.*)\s*\Z", text)
    return ours[1] if ours else text


def failed(task: Any, text: str) -> None:
    """Tell the operator's command of a task that failed; `text` is what there is to say, or a traceback."""
    about = {"task": task.task_family, **getattr(task, "about", {})}
    notify("failed", in_one_line(task, reason(text)), **about, message=reason(text))


def in_one_line(task: Any, text: str) -> str:
    """An error's text with what it is about, unless that is in it."""
    what = getattr(task, "what", task.task_family)
    return text if what in text else f"{what}: {text.removeprefix(f'{what.split()[0]}: ')}"


def notify(event: str, line: str, **about: Any) -> None:
    """Give an event to the operator's command, as JSON on its standard input; `line` is the event for people."""
    command = vgg().notify
    if not command:
        return
    host = socket.gethostname()
    told = {"text": f"{event} on {host}: {line}", "time": now(), "event": event, "host": host, **about}
    told = {key: _clean(value) if isinstance(value, str) else value for key, value in told.items()}
    try:
        problem, said = _run(command, json.dumps(told))
    except OSError as error:
        problem, said = f"cannot be run ({error.strerror})", ""
    said = _clean(" ".join(said.split()))[:500]
    if problem:  # without the command, which may hold a token
        log.warning("[vgg] notify: %r was not delivered: the command %s%s", event, problem, said and f": {said}")
    elif said:
        log.info("[vgg] notify: %s", said)


def mail(task: Any, text: str) -> None:
    """Send Luigi's e-mail about a task, if luigi.cfg asks for one, with the reason as its subject and first line."""
    headline = _clean(in_one_line(task, reason(text)))
    hidden = vgg().notify or "\0"
    command = subprocess.list2cmdline([address.redact(word.replace(hidden, "…")) for word in sys.argv])
    text = without_traceback(text)
    traceback = text if "Traceback" in text else ""
    subject = f"failed on {socket.gethostname()}: {headline.partition('; ')[0]}"[:200]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Luigi warns of its own defaults
            first = html.escape(headline) if notifications.email().format == "html" else headline
            message = notifications.format_task_error(first, task, command, traceback)
            notifications.send_error_email(subject, message, task.owner_email)
    except Exception as error:  # a wrong option, an address that is none, a package that the method needs
        log.warning("[email]: no e-mail was sent: %s", cause(error))


def _run(command: str, content: str) -> tuple[str, str]:
    """What went wrong with the command, "" if nothing; and what it said."""
    with tempfile.TemporaryFile() as output:  # not a pipe: whatever it leaves running could keep that open
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.communicate(content.encode() + b"\n", timeout=LIMIT_SECONDS)
            problem = f"exited with status {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
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
