"""Doctor: everything that a run needs, checked in a moment, each with one line: ok, or what to do.

The checks of the machine are in `pipeline.doctor`; here are those of Luigi's configuration and of luigid.
"""

from __future__ import annotations

import difflib
import email.utils
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import luigi
from luigi.configuration import get_config
from luigi.interface import core
from luigi.retcodes import retcode
from luigi.scheduler import scheduler as scheduler_section
from luigi.worker import worker as worker_section

from pipeline import doctor
from pipeline.doctor import Finding
from tasks import scheduler
from tasks.defaults import RETURN_CODES, UNHEALTHY, exit_with, is_command, vgg
from tasks.maintenance import Command
from tasks.progress import tell

#: Seconds that luigid has for an answer.
PATIENCE = 2.0

#: The sections of luigi.cfg whose options are known.
SECTIONS: dict[str, type[luigi.Config]] = {
    "core": core,
    "worker": worker_section,
    "scheduler": scheduler_section,
    "retcode": retcode,
    "vgg": vgg,
}


class Doctor(Command):
    """Check everything that a run needs, one line each; exit code 6 when something is wrong."""

    json = luigi.BoolParameter(default=False, description="print the findings as JSON")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What Luigi cannot read, or lacks, keeps it from running any task, this one too.
        if is_command() and (list(_unreadable()) or not doctor.semaphores().ok):
            self.work()
            raise SystemExit(UNHEALTHY)

    def work(self) -> None:
        findings = [*doctor.examine(self.chain), *luigi_configuration(), luigid()]
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
        text = f"LUIGI_CONFIG_PATH is {wanted}, which is no file; Luigi goes on without it: correct or unset it"
        return [Finding("luigi config", False, text)]
    read = [str(Path(path).absolute()) for path in get_config()._config_paths if os.path.exists(path)]
    mistakes = list(_mistakes())
    if mistakes:
        return [Finding("luigi config", False, f"{mistake} (read: {', '.join(read)})") for mistake in mistakes]
    settings = f"task_failed exits with {retcode().task_failed}, overlap {vgg().overlap}"
    return [Finding("luigi config", True, f"{', '.join(read) or 'no file, defaults'}; {settings}")]


def luigid() -> Finding:
    """Whether the scheduler that commands would use answers, belongs to this Luigi, and has the same time."""
    address = scheduler.address()
    if address is None:
        return Finding("luigid", True, "not used (--local-scheduler)")
    shown = scheduler.shown(address)
    # luigid does not tell its version; a file that it serves, and that nearly every version changed, does.
    name = "static/visualiser/js/visualiserApp.js"
    own = (Path(luigi.__file__).parent / name).read_bytes()
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/{name}", timeout=PATIENCE) as answer:
            served, date = answer.read(2_000_000), answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        return Finding(
            "luigid", False, f"what answers at {shown} is no luigid (HTTP {error.code}): see [core] in luigi.cfg"
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        return Finding(
            "luigid", False, f"none answers at {shown} ({why}): start one with luigid, or add --local-scheduler"
        )
    if served != own:
        text = f"{shown} is of another version than the luigi here ({luigi.__version__}): run the same on both sides"
        return Finding("luigid", False, text)
    away = email.utils.parsedate_to_datetime(date).timestamp() - time.time() if date else 0.0
    if abs(away) > doctor.CLOCK_SECONDS:
        return Finding("luigid", False, f"the clock of {shown} is {away:+.0f} s away from this machine's: set it (NTP)")
    return Finding("luigid", True, f"{shown} answers, luigi {luigi.__version__} as here")


def _mistakes() -> Iterator[str]:
    """What is wrong in luigi.cfg, in words."""
    config = get_config()
    for section, cls in SECTIONS.items():
        if not config.has_section(section):
            continue
        known = _options(cls)
        for option in config.options(section):
            if option.replace("-", "_") not in known and option not in config.defaults():
                close = difflib.get_close_matches(option, known, 1)
                yield f"unknown option {option} in [{section}]" + (f": did you mean {close[0]}?" if close else "")
    yield from _unreadable()
    yield from _missing_packages()
    zero = [name for name in RETURN_CODES if config.get("retcode", name, "1") == "0"]
    if zero:
        yield f"[retcode] {', '.join(zero)} is 0: cron and systemd would not notice; remove the line"


def _unreadable() -> Iterator[str]:
    """The sections of luigi.cfg with a value that Luigi does not understand."""
    readers: dict[str, Callable[[], object]] = {
        **SECTIONS,
        "resources": lambda: get_config().getintdict("resources"),
    }
    for section, read in readers.items():
        try:
            read()
        except Exception as error:  # whatever a parameter's own parser raises
            yield f"[{section}] cannot be read: {error}; comments need a line of their own, % must be written %%"


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


def _options(cls: type[luigi.Config]) -> set[str]:
    """The names that a section's options can have."""
    names = set()
    for name, parameter in cls.get_params():
        names.add(name)
        old = getattr(parameter, "_config_path", None) or {}
        names.add(str(old.get("name", name)).replace("-", "_"))
    return names
