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

from tasks.defaults import log, return_code

#: Seconds that a scheduler has to accept a connection.
PATIENCE = 5.0

_answered = False
_local: bool | None = None


def require() -> None:
    """End the command with one line when it has a scheduler that does not answer.

    Raises `SystemExit`. Another error would not do where Luigi is already asking a task that is not this plugin's, such
    as RangeDaily: it would only be sent to the scheduler that is missing.
    """
    global _answered
    if _answered or _local is not None or CmdlineParser.get_instance() is None:  # or it does without
        return
    url = address()
    if url is not None and not _answers(url):
        log.error("no luigid answers at %s: start one with luigid, or add --local-scheduler", shown(url))
        raise SystemExit(return_code("scheduling_error"))
    _answered = True


def do_without(family: str) -> None:
    """Let the command line run `family` without a scheduler: it only looks at files, or moves some."""
    global _local
    if _is_root_task(family):
        if _local is None:
            _local = core().local_scheduler
        get_config().set("core", "local_scheduler", "true")


def address() -> str | None:
    """The scheduler that the user's commands talk to; None for `--local-scheduler`."""
    settings = core()  # as Luigi will read it: command line, luigi.cfg, defaults
    if settings.local_scheduler if _local is None else _local:
        return None
    return settings.scheduler_url or f"http://{settings.scheduler_host}:{settings.scheduler_port}"


def shown(url: str) -> str:
    """An address as it may be printed: without a user name or password."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


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
