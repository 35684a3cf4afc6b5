"""Doctor: each check has one line, ok or what to do. Those of the machine are in `pipeline.doctor`."""

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
from tasks.exit_codes import RETURN_CODES, UNHEALTHY, exit_with
from tasks.log import tell
from tasks.maintenance import Command
from tasks.mistakes import did_you_mean
from tasks.settings import vgg


class Doctor(Command, ChainTask):
    """Check everything that a run needs, one line each; exit code 6 when something is wrong."""

    json = luigi.BoolParameter(default=False, description="print the findings as JSON; default: one line each")

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
        text = f"LUIGI_CONFIG_PATH is {wanted!r}, which is not a file, so Luigi ignores it: correct or unset it"
        return [Finding("luigi config", False, text)]
    read = mistakes.files()
    found = [Finding("luigi config", False, f"{mistake} (read: {read})") for mistake in _mistakes()]
    if found:
        return found
    settings = f"task_failed exits with {retcode().task_failed}, overlap {vgg().overlap}"
    return [Finding("luigi config", True, f"{read or 'no file, defaults'}; {settings}")]


def luigid() -> list[Finding]:
    """Whether the scheduler that commands would use answers."""
    address = scheduler.address()
    if address is None:
        return [Finding("luigid", True, "not used (--local-scheduler)")]
    wrong = scheduler.problem(RemoteScheduler(address))
    return [Finding("luigid", not wrong, wrong or f"{scheduler.shown(address)} answers")]


def _mistakes() -> Iterator[str]:
    """What is wrong in luigi.cfg although Luigi can read it (else this task would not run), in words."""
    sections = mistakes.known_options()
    for section, options in mistakes.contents().items():
        known = sections.get(section, {})
        for option in options if known else ():
            if option.replace("-", "_") not in known:
                yield f"unknown option {option} in [{section}]{did_you_mean(option, known)}"
        meant = did_you_mean(section, [*sections, "resources"], 0.8)
        if meant and section not in (*sections, "resources", *Register.task_names()):
            yield f"unknown section [{section}]{meant}"
    zero = [name for name in RETURN_CODES if str(get_config().get("retcode", name, "1")) == "0"]
    if zero:
        yield f"[retcode] {', '.join(zero)} is 0, so cron and systemd would not notice a failure: remove the line"
