"""Everything that changes in the `luigi` command when it runs this plugin: exit codes, log, signals, worker, locking.

`begin` is called when the package is imported. Under `luigi --module tasks …`, also with a task of Luigi's own such as
RangeDaily, it installs all of it (`install`). Under `luigi` with another module, only expected errors of this plugin
become one line; such a module may call `install()` itself. Any other program keeps its Luigi as it is. What luigi.cfg
or the command line says takes precedence.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import sys
from typing import Any

from luigi import interface
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.metrics import MetricsCollectors
from luigi.parameter import ParameterException
from luigi.scheduler import Scheduler
from luigi.task_register import TaskClassAmbigiousException, TaskClassException
from luigi.worker import TaskProcess

from pipeline import streams
from pipeline.doctor import semaphores
from pipeline.errors import ConfigError, PipelineError
from pipeline.process import parent
from pipeline.process.child import GRACE_SECONDS
from pipeline.workspace.freshness import begin_command
from tasks import command_log, mistakes, scheduler_client
from tasks.exit_codes import (
    BAD_CONFIGURATION,
    RETURN_CODES,
    asked_for,
    exit_with,
    is_command,
    module_of_the_command,
    return_code,
    take_the_command,
)
from tasks.log import log
from tasks.worker import Worker


def begin() -> None:
    """Change the program that is importing this package, if it is the `luigi` command; any other stays as it is."""
    module = module_of_the_command()
    if module is not None:
        begin_command()
        tell_errors_in_one_line()
        if module.partition(".")[0] in (__package__, "luigi_vgg"):
            install()


def install() -> None:
    """Give the running `luigi` command this plugin's exit codes, log, worker and client of luigid, and no lock.

    Call it while Luigi imports its `--module`: Luigi reads its settings right after that.
    """
    if is_command():
        return
    take_the_command()
    streams.ignore_write_errors()
    tell_errors_in_one_line()
    command_log.set_up()
    _refuse_luigi_cfg()
    _set_defaults()
    CmdlineParser.get_task_obj = _get_task_obj  # type: ignore[method-assign]
    # Luigi takes another factory only from a program that calls `luigi.run`, not from its command line.
    interface._WorkerSchedulerFactory.create_remote_scheduler = scheduler_client.create_remote_scheduler  # type: ignore[method-assign]
    interface._WorkerSchedulerFactory.create_local_scheduler = _create_local_scheduler  # type: ignore[method-assign]
    interface._WorkerSchedulerFactory.create_worker = _create_worker  # type: ignore[method-assign]
    atexit.register(_leave)


def tell_errors_in_one_line() -> None:
    """Show expected errors of this plugin as one line where Luigi would show a traceback."""
    for name in ("luigi-interface", "luigi"):
        logging.getLogger(name).addFilter(command_log.without_traceback)
    sys.excepthook = _excepthook


def _create_local_scheduler(factory: Any) -> Scheduler:
    """Replaces Luigi's own: what luigi.cfg says of figures for Prometheus is for luigid, which has the package."""
    nothing = MetricsCollectors.none
    return Scheduler(prune_on_get_work=True, record_task_history=False, metrics_collector=nothing)


def _create_worker(factory: Any, scheduler: Any, worker_processes: int, assistant: bool = False) -> Worker:
    """Replaces Luigi's own; ends the command with one line when the machine or luigi.cfg does not allow a worker."""
    try:
        semaphores()
        if worker_processes < 1:
            raise ConfigError(f"--workers: found {worker_processes}, expected at least 1")
        return Worker(scheduler=scheduler, worker_processes=worker_processes, assistant=assistant)
    except (PipelineError, AssertionError) as error:  # Luigi asserts that [worker] wait_interval is positive
        log.error("%s", error)
        wrong = isinstance(error, (AssertionError, ConfigError))
        raise SystemExit(BAD_CONFIGURATION if wrong else return_code("scheduling_error")) from None


# --- the end of the command -----------------------------------------------------------------------------------------


def _leave() -> None:
    parent.end_early()
    for process in multiprocessing.active_children():
        if isinstance(process, TaskProcess):
            process.join(timeout=GRACE_SECONDS + 5)  # it is writing its checkpoint
    code = asked_for()
    if code is not None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _get_task_obj(self: CmdlineParser) -> Any:
    """Replaces Luigi's own: the task that the command line names, or one line about what is wrong."""
    line = mistakes.on_command_line(self)
    try:
        if line is None:
            return _luigis_get_task_obj(self)
    except ParameterException as error:
        line = mistakes.told(error)
    exit_with(BAD_CONFIGURATION)
    raise ConfigError(line)


_luigis_get_task_obj = CmdlineParser.get_task_obj


def _excepthook(kind: type[BaseException], error: BaseException, traceback: object) -> None:
    if isinstance(error, KeyboardInterrupt) and is_command():
        log.error("%s", str(error) or "stopped")
    elif isinstance(error, TaskClassAmbigiousException) or (isinstance(error, TaskClassException) and is_command()):
        log.error("%s", mistakes.told(error))
        raise SystemExit(BAD_CONFIGURATION)
    else:
        sys.__excepthook__(kind, error, traceback)  # type: ignore[arg-type]


# --- settings of Luigi ------------------------------------------------------------------------------------------------


def _refuse_luigi_cfg() -> None:
    wrong = list(mistakes.in_luigi_cfg())
    for line in wrong:
        log.error("%s", line)
    if wrong:
        raise SystemExit(BAD_CONFIGURATION)


def _set_defaults() -> None:
    """Of Luigi's own settings, unless luigi.cfg or the command line has them."""
    defaults = {("retcode", name): str(code) for name, code in RETURN_CODES.items()}
    # Luigi's own lock goes by the command line alone: it would refuse the same command in another folder, and
    # know nothing of `[vgg] overlap`.
    defaults["core", "no_lock"] = "true"
    for (section, option), value in defaults.items():
        if not get_config().has_option(section, option):
            get_config().set(section, option, value)
