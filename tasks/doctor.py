"""Doctor: one line per check, either ok or what to do. Checks of the machine are in `pipeline.doctor`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import luigi
from luigi.configuration import get_config
from luigi.retcodes import retcode
from luigi.rpc import RemoteScheduler
from luigi.task_register import Register

from pipeline import doctor
from pipeline.doctor import Finding
from tasks import mistakes, scheduler
from tasks.base import ChainTask
from tasks.exit_codes import RETURN_CODES, UNHEALTHY, request_exit_code
from tasks.log import echo
from tasks.maintenance import Command
from tasks.mistakes import did_you_mean
from tasks.settings import vgg


class Doctor(Command, ChainTask):
    """Check everything that a run needs, one line per check. Exits with 6 if there is a problem."""

    json = luigi.BoolParameter(default=False, description="print JSON; default: one line per check")

    def work(self) -> None:
        findings = [*doctor.examine(self.chain), *luigi_configuration(), *luigid()]
        problems = [finding for finding in findings if not finding.ok]
        if self.json:
            echo(json.dumps({"ok": not problems, "findings": [asdict(finding) for finding in findings]}, indent=2))
        else:
            for finding in findings:
                echo(f"{'ok' if finding.ok else 'PROBLEM':<8} {finding.name:<13} {finding.text}")
        if problems:
            request_exit_code(UNHEALTHY)


def luigi_configuration() -> list[Finding]:
    """Check which files Luigi has read and whether it knows their sections and options."""
    wanted = os.environ.get("LUIGI_CONFIG_PATH")
    if wanted is not None and not Path(wanted).is_file():
        text = f"LUIGI_CONFIG_PATH is {wanted!r}, which is not a file, so Luigi ignores it: correct or unset it"
        return [Finding("luigi config", False, text)]
    read = mistakes.files()
    problems = [Finding("luigi config", False, f"{mistake} (read: {read})") for mistake in _mistakes()]
    if problems:
        return problems
    settings = f"task_failed exits with {retcode().task_failed}, overlap {vgg().overlap}"
    return [Finding("luigi config", True, f"{read or 'no file, defaults'}; {settings}")]


def luigid() -> list[Finding]:
    address = scheduler.address()
    if address is None:
        return [Finding("luigid", True, "not used (--local-scheduler)")]
    problem = scheduler.problem(RemoteScheduler(address))
    return [Finding("luigid", not problem, problem or f"{scheduler.shown(address)} responds")]


def _mistakes() -> Iterator[str]:
    """Yield mistakes in luigi.cfg that Luigi ignores. What it cannot parse stops the command before this task runs."""
    sections = mistakes.known_options()
    for section, options in mistakes.contents().items():
        known = sections.get(section, {})
        for option in options if known else ():
            if option.replace("-", "_") not in known:
                yield f"unknown option {option} in [{section}]{did_you_mean(option, known)}"
        suggestion = did_you_mean(section, [*sections, "resources"], 0.8)
        if suggestion and section not in (*sections, "resources", *Register.task_names()):
            yield f"unknown section [{section}]{suggestion}"
    zero = [name for name in RETURN_CODES if str(get_config().get("retcode", name, "1")) == "0"]
    if zero:
        yield f"[retcode] {', '.join(zero)} is 0, so cron and systemd would not notice a failure: remove the line"
