"""Is the scheduler there? Asked once, when the `luigi` command makes its task.

Luigi itself asks three times, 30 seconds apart, and then shows a traceback. Only the command line is looked after: a
program that uses the tasks through `luigi.build` chose its scheduler itself.
"""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request

from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.interface import core

from pipeline.errors import PipelineError
from tasks.defaults import exit_with, return_code

#: Seconds that a scheduler has to accept a connection.
PATIENCE = 5.0

_answered = False


def require(family: str) -> None:
    """Raise `PipelineError` when the command line is about to run `family` with a scheduler that does not answer."""
    global _answered
    if _answered or not _is_root_task(family):
        return
    settings = core()  # as Luigi will read it: command line, luigi.cfg, defaults
    url = settings.scheduler_url or f"http://{settings.scheduler_host}:{settings.scheduler_port}"
    if not settings.local_scheduler and not _answers(url):
        exit_with(return_code("scheduling_error"))
        shown = urllib.parse.urlsplit(url)
        shown = shown._replace(netloc=shown.netloc.rpartition("@")[2])
        raise PipelineError(
            f"no luigid answers at {shown.geturl().rstrip('/')}: start one with luigid, or add --local-scheduler"
        )
    _answered = True


def do_without(family: str) -> None:
    """Let the command line run `family` without a scheduler: it only looks at files, or moves some."""
    if _is_root_task(family):
        get_config().set("core", "local_scheduler", "true")


def _is_root_task(family: str) -> bool:
    parser = CmdlineParser.get_instance()
    return parser is not None and parser.known_args.root_task == family


def _answers(url: str) -> bool:
    """True when something accepts connections at `url`, or when that cannot be found out from here."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or _behind_proxy(parts.scheme, parts.hostname):
        return True
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection((parts.hostname, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def _behind_proxy(scheme: str, host: str) -> bool:
    proxies = urllib.request.getproxies()
    return (scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host)
