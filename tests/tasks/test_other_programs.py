"""The tasks in other people's programs and modules, where Luigi is left unchanged."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import subprocess
import sys

import pytest
from luigi_runs import CHECKOUT, clean_environment, luigi_command, run

import tasks

#: The state of Luigi and Python that a program can observe.
SEEN = """
import atexit, json, logging, os, signal, sys, warnings
import luigi.interface, luigi.retcodes, luigi.worker
from luigi.configuration import get_config

def seen():
    loggers = [logging.getLogger(name) for name in ("", "luigi", "luigi-interface", "luigi.scheduler")]
    config = get_config()
    return {
        "logging": [(str(logger), logger.filters, logger.handlers, logger.propagate) for logger in loggers],
        "settings": {name: dict(config.items(name)) for name in config.sections()},
        "hook": sys.excepthook,
        "at exit": atexit._ncallbacks(),
        "warnings": list(warnings.filters),
        "scheduler": luigi.interface._WorkerSchedulerFactory.create_remote_scheduler,
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "environment": dict(os.environ),
    }

before = seen()
"""


def program(folder, text):
    return run([sys.executable, "-c", SEEN + text], folder)


def test_importing_and_using_the_tasks_changes_nothing_in_a_program(done):
    report = f"tasks.Report(config={str(done.config)!r}, workspace={str(done.workspace)!r})"
    result = program(
        done.cwd,
        f"""
import multiprocessing, tasks
after = seen()
assert after == before, [(key, before[key], after[key]) for key in before if after[key] != before[key]]
signal.signal(signal.SIGUSR1, lambda *received: print("a signal for the program"))

def used():  # in a process forked by the program, not by Luigi
    from tasks.exit_codes import request_exit_code
    from tasks.signals import stop_requesting_work
    stop_requesting_work()
    request_exit_code(30)
    assert luigi.build([{report}], local_scheduler=True)
    assert seen()["signals"] == before["signals"]

process = multiprocessing.get_context("fork").Process(target=used)
process.start()
process.join()
print("ended with", process.exitcode)
""",
    )
    assert (result.rc, result.output) == (0, "ended with 0\n"), result.text
    assert ":) because there were no failed tasks" in result.log
    assert "up to date" in result.log


def test_a_program_gets_the_exception_and_luigis_status(fresh):
    fresh.configure(data__source=str(fresh.root / "nowhere.tar.gz"))
    result = program(
        fresh.cwd,
        f"""
import luigi, tasks
from pipeline.errors import DataError

@luigi.Task.event_handler(luigi.Event.FAILURE)
def report(task, error):
    assert isinstance(error, DataError), error
    print(task.task_family, error)

chain = tasks.Report(config={str(fresh.config)!r}, workspace={str(fresh.workspace)!r})
print(luigi.build([chain], local_scheduler=True, detailed_summary=True).status.name)
""",
    )
    assert result.rc == 0, result.text
    error, status = result.output.splitlines()
    assert error.startswith("DownloadCifar ")
    assert "nowhere.tar.gz" in error
    assert status == "FAILED"


OTHER = """
import luigi, tasks

class Mine(luigi.WrapperTask):
    config = luigi.Parameter()
    workspace = luigi.Parameter()
    def requires(self):
        return tasks.Report(config=self.config, workspace=self.workspace)
"""


def mine(chain, module, *arguments, text=OTHER):
    (chain.cwd / "mine.py").write_text(text)
    about = ["--config", str(chain.config), "--workspace", str(chain.workspace), "--local-scheduler"]
    environment = clean_environment(PYTHONPATH=os.pathsep.join([str(CHECKOUT), str(chain.cwd)]))
    return run([*luigi_command(), "--module", module, *arguments, *about], chain.cwd, environment)


def test_another_module_that_uses_the_tasks_keeps_luigis_exit_code_and_log(fresh):
    fresh.configure(data__source=str(fresh.root / "nowhere.tar.gz"))
    result = mine(fresh, "mine", "Mine")
    assert result.rc == 0, result.text  # Luigi's own exit code for a failed task
    assert ":( because there were failed tasks" in result.log
    assert "INFO: Informed scheduler" in result.log
    assert str(fresh.root / "nowhere.tar.gz") in result.log


def test_another_module_can_install_the_whole_behaviour(done):
    text = OTHER.replace("import luigi, tasks", "import luigi, tasks\ntasks.command.install()")
    done.configure(data__source=str(done.root / "nowhere.tar.gz"))
    result = mine(done, "mine", "Mine", text=text)
    assert result.rc == 30, result.text
    assert "INFO: Informed scheduler" not in result.log


@pytest.mark.parametrize("module", ["mine", "tasks"])
def test_a_bad_configuration_in_another_tasks_requirement_is_reported_in_one_line(fresh, module):
    fresh.configure(training__epochs="many")
    (fresh.cwd / "mine.py").write_text(OTHER)
    if module == "tasks":
        about = json.dumps({"config": str(fresh.config), "workspace": str(fresh.workspace)})
        span = ["--start", "2026-11-01", "--stop", "2026-11-02", "--of", "Retrain", "--of-params", about]
        command = [*luigi_command(), "RangeDaily", "--module", "tasks", *span, "--local-scheduler"]
        result = run(command, fresh.cwd)
        assert result.rc == 2, result.text
    else:
        result = mine(fresh, module, "Mine")
    assert 'training.epochs: found "many"' in result.log
    assert "Traceback" not in result.text


def test_a_clone_gets_what_follows_from_its_configuration_generation_and_date(done):
    done.configure(retrain={"new_seed": True})
    (done.root / "other.yaml").write_text(done.config.read_text().replace("name: tiny", "name: other"))
    about = {"config": str(done.config), "workspace": str(done.workspace)}
    report, other = tasks.Report(**about), str(done.root / "other.yaml")
    assert report.chain.config.training.seed == 0
    for generation in ("seed-3", "2026-W40", "", None):
        clone, same = report.clone(generation=generation), tasks.Report(**about, generation=generation)
        assert clone.chain.config.training.seed == same.chain.config.training.seed
        assert clone == same
        assert clone.clone(generation="").chain.config.training.seed == 0
    assert report.clone(generation="seed-3").chain.config.training.seed == 3
    assert report.clone(tasks.TrainVGG, config=other) == tasks.TrainVGG(**about | {"config": other})
    date = datetime.date(2026, 11, 10)
    assert tasks.Retrain(**about).clone(date=date) == tasks.Retrain(**about, date=date)
    assert tasks.Retrain(**about, generation="mine").clone(date=date).generation == "mine"


def test_a_task_can_be_sent_to_another_process(done):
    report = tasks.Report(config=str(done.config), workspace=str(done.workspace), generation="seed-3")
    code = (
        "import pickle, sys; task = pickle.load(sys.stdin.buffer); print(task.complete(), task.chain.config.training)"
    )
    sent = subprocess.run(
        [sys.executable, "-c", code],
        cwd=done.cwd,
        env=clean_environment(),
        input=pickle.dumps(report),
        capture_output=True,
    )
    assert sent.stdout.startswith(b"False "), sent.stderr
    assert b"seed=3," in sent.stdout
