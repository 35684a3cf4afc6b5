"""Doctor: everything that a run needs, checked in a moment, each with one line: ok, or what to do.

The checks of the machine are in `pipeline.doctor`; here are those of Luigi's configuration and of luigid.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import socket
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import luigi
from luigi.configuration import get_config
from luigi.retcodes import retcode
from luigi.rpc import RemoteScheduler
from luigi.task_register import Register

from pipeline import doctor
from pipeline.doctor import Finding
from tasks import mistakes, scheduler
from tasks.base import ChainTask
from tasks.exit_codes import RETURN_CODES, UNHEALTHY, exit_with, is_command
from tasks.log import tell
from tasks.maintenance import Command
from tasks.mistakes import did_you_mean
from tasks.scheduler_client import disabled, short_name
from tasks.settings import vgg

#: Seconds that luigid has for an answer.
TIMEOUT = 2.0

#: Seconds that its clock may differ from ours.
CLOCK_SECONDS = 60.0


class Doctor(Command, ChainTask):
    """Check everything that a run needs, one line each; exit code 6 when something is wrong."""

    json = luigi.BoolParameter(default=False, description="print the findings as JSON; default: one line each")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What Luigi lacks keeps it from running any task, this one too.
        if is_command() and not doctor.finding("shared memory", doctor.semaphores).ok:
            self.work()
            raise SystemExit(UNHEALTHY)

    def work(self) -> None:
        findings = [*doctor.examine(self.chain), *luigi_configuration(), *luigid()]
        wrong = [finding for finding in findings if not finding.ok]
        if self.json:
            tell(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}, indent=2))
        else:
            for finding in findings:
                tell(f"{'ok' if finding.ok else 'PROBLEM':<8} {finding.name:<13} {finding.text}")
        if wrong:
            exit_with(UNHEALTHY)


def luigi_configuration() -> list[Finding]:
    """Which files Luigi really read, and whether it understands what is in them."""
    wanted = os.environ.get("LUIGI_CONFIG_PATH")
    if wanted is not None and not Path(wanted).is_file():
        text = f"LUIGI_CONFIG_PATH is {wanted}, which is not a file, so Luigi ignores it: correct or unset it"
        return [Finding("luigi config", False, text)]
    read = ", ".join(mistakes.files())
    found = [Finding("luigi config", False, f"{mistake} (read: {read})") for mistake in _mistakes()]
    if found:
        return found
    settings = f"task_failed exits with {retcode().task_failed}, overlap {vgg().overlap}"
    return [Finding("luigi config", True, f"{read or 'no file, defaults'}; {settings}")]


def luigid() -> list[Finding]:
    """Whether the scheduler that commands would use answers, has the right time, and lets our tasks run."""
    address = scheduler.address()
    if address is None:
        return [Finding("luigid", True, "not used (--local-scheduler)")]
    client, shown = RemoteScheduler(address), scheduler.shown(address)
    if wrong := scheduler.problem(client, (TIMEOUT, TIMEOUT)):
        return [Finding("luigid", False, wrong)]
    ahead = _seconds_ahead(client)
    if abs(ahead) > CLOCK_SECONDS:
        text = f"the clock of {shown} is {ahead:+.0f} s away from this machine's: set it (NTP)"
        return [Finding("luigid", False, text)]
    refused = [Finding("luigid", False, f"{line} ({scheduler.page(address)})") for line in _disabled(client)]
    return refused or [Finding("luigid", True, f"{shown} answers")]


def _seconds_ahead(client: Any) -> float:
    """By how much the scheduler's clock is ahead of ours; 0 when it does not tell."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        told = client._fetcher.session.head(client._url, timeout=TIMEOUT).headers["Date"]
        return email.utils.parsedate_to_datetime(told).timestamp() - time.time()
    return 0.0


def _disabled(client: RemoteScheduler) -> Iterator[str]:
    """The tasks of this plugin that luigid does not let run after their failures."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # whatever answers there
        asked = {"data": json.dumps({"status": "DISABLED"})}
        tasks = json.loads(client._fetcher.fetch(f"{client._url}/api/task_list", asked, TIMEOUT))["response"]
        for task_id, task in tasks.items():
            if task["re_enable_able"] and task["name"] in Register.task_names():
                yield f"{short_name(task_id)}: {disabled(task)}"


def _mistakes() -> Iterator[str]:
    """What is wrong in luigi.cfg although Luigi can read it (else this task would not run), in words."""
    for section, options in mistakes.contents().items():
        cls = mistakes.sections().get(section)
        if cls is None:
            meant = did_you_mean(section, [*mistakes.sections(), "resources", "task_history", "email"], 0.8)
            if meant and section not in (*Register.task_names(), "resources", "task_history", "email"):
                yield f"unknown section [{section}]{meant}"
            continue
        known = mistakes.parameters(cls)
        for option in options:
            if option.replace("-", "_") not in known:
                yield f"unknown option {option} in [{section}]{did_you_mean(option, known)}"
    yield from _missing_packages()
    yield from _missing_folders()
    zero = [name for name in RETURN_CODES if str(get_config().get("retcode", name, "1")) == "0"]
    if zero:
        yield f"[retcode] {', '.join(zero)} is 0, so cron and systemd would not notice a failure: remove the line"


def _missing_packages() -> Iterator[str]:
    """Packages that luigid needs for what luigi.cfg turns on; without them it does not even start."""
    config = get_config()
    if config.getboolean("scheduler", "record_task_history", False):
        found = _version("sqlalchemy")
        if found is None or not found.startswith("1."):  # Luigi 3.8 hands plain strings to it, which 2.0 refuses
            needed = "record_task_history needs sqlalchemy 1.4"
            yield f"[scheduler] {needed}, found {found}: pip install 'sqlalchemy>=1.4,<2'"
    if config.get("scheduler", "metrics_collector", "") == "prometheus" and _version("prometheus-client") is None:
        yield "[scheduler] metrics_collector needs prometheus-client: pip install 'luigi[prometheus]'"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing_folders() -> Iterator[str]:
    """Folders in which luigid is to keep something, and which it does not make; nothing when luigid is elsewhere."""
    host = urllib.parse.urlsplit(scheduler.address() or "").hostname
    if host not in (None, "localhost", "127.0.0.1", "::1", socket.gethostname()):
        return
    config = get_config()
    wanted = {"[scheduler] state_path": str(config.get("scheduler", "state_path", ""))}
    if config.getboolean("scheduler", "record_task_history", False):
        kind, _, path = str(config.get("task_history", "db_connection", "")).partition(":///")
        wanted["[task_history] db_connection"] = path if kind == "sqlite" else ""
    for what, path in wanted.items():
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            yield f"{what}: the folder {folder} does not exist, and luigid does not create it: create it"
