"""Changes to the `luigi` command when it runs this plugin: exit codes, log, signals, worker, locking.

Importing the package calls `on_import`. Under `luigi --module tasks …` (Luigi's own tasks such as RangeDaily included)
it installs everything. Under `luigi` with another module, it only reduces this plugin's expected errors to one line;
such a module may call `install()` itself. In any other program Luigi stays as it is. luigi.cfg and the command line
take precedence.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import sys
from typing import Any

from luigi import Config, interface, retcodes
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.metrics import MetricsCollectors
from luigi.parameter import ParameterException
from luigi.scheduler import Scheduler
from luigi.task_register import TaskClassAmbigiousException, TaskClassException
from luigi.worker import TaskProcess

from pipeline import streams
from pipeline.doctor import check_semaphores
from pipeline.errors import ConfigError, PipelineError
from pipeline.process import parent
from pipeline.process.child import GRACE_SECONDS
from pipeline.workspace.freshness import begin_command
from tasks import command_log, mistakes, scheduler_client
from tasks.exit_codes import (
    BAD_CONFIGURATION,
    RETURN_CODES,
    claim_command,
    command_module,
    is_command,
    request_exit_code,
    requested_exit_code,
    return_code,
)
from tasks.log import log
from tasks.worker import Worker


def on_import() -> None:
    """Set up the `luigi` command. Does nothing in any other program that imports this package."""
    module = command_module()
    if module is not None:
        begin_command()
        shorten_errors()
        if module.partition(".")[0] in (__package__, "luigi_vgg"):
            install()


def install() -> None:
    """Install this plugin's exit codes, log, worker and luigid client, and disable Luigi's lock.

    Call it while Luigi imports its `--module`: Luigi reads its settings right after that.
    """
    if is_command():
        return
    claim_command()
    streams.ignore_write_errors()
    shorten_errors()
    command_log.set_up()
    _check_luigi_cfg()
    _set_defaults()
    CmdlineParser.get_task_obj = _get_task_obj  # type: ignore[method-assign]
    retcodes.retcode = _retcode  # type: ignore[assignment,misc]
    # Luigi accepts another factory only from a program that calls `luigi.run`, not from its command line.
    interface._WorkerSchedulerFactory.create_remote_scheduler = scheduler_client.create_remote_scheduler  # type: ignore[method-assign]
    interface._WorkerSchedulerFactory.create_local_scheduler = _create_local_scheduler  # type: ignore[method-assign]
    interface._WorkerSchedulerFactory.create_worker = _create_worker  # type: ignore[method-assign]
    atexit.register(_at_exit)


def shorten_errors() -> None:
    """Log this plugin's expected errors as one line instead of a traceback."""
    for name in ("luigi-interface", "luigi"):
        logging.getLogger(name).addFilter(command_log.shorten_error)
    sys.excepthook = _excepthook


def _create_local_scheduler(factory: Any) -> Scheduler:
    """Like Luigi's own, without its Prometheus metrics: that setting is for luigid, which has the package."""
    return Scheduler(prune_on_get_work=True, record_task_history=False, metrics_collector=MetricsCollectors.none)


def _create_worker(factory: Any, scheduler: Any, worker_processes: int, assistant: bool = False) -> Worker:
    """Like Luigi's own, but exits with one line if the machine or luigi.cfg does not allow a worker."""
    try:
        check_semaphores()
        if worker_processes < 1:
            raise ConfigError(f"--workers: found {worker_processes}, expected at least 1")
        return Worker(scheduler=scheduler, worker_processes=worker_processes, assistant=assistant)
    except (PipelineError, AssertionError) as error:  # Luigi asserts that [worker] wait_interval is positive
        log.error("%s", error)
        misconfigured = isinstance(error, (AssertionError, ConfigError))
        raise SystemExit(BAD_CONFIGURATION if misconfigured else return_code("scheduling_error")) from None


def _at_exit() -> None:
    parent.end_early()
    for process in multiprocessing.active_children():
        if isinstance(process, TaskProcess):
            process.join(timeout=GRACE_SECONDS + 5)  # time to write its checkpoint
    code = requested_exit_code()
    if code is not None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _get_task_obj(self: CmdlineParser) -> Any:
    """Like Luigi's own: the task that the command line names. Raises `ConfigError` with one line about a mistake."""
    line = mistakes.check_command_line(self)
    if line is None:
        try:
            return _original_get_task_obj(self)
        except ParameterException as error:
            line = mistakes.explain(error)
    request_exit_code(BAD_CONFIGURATION)
    raise ConfigError(line)


def _retcode() -> Config:
    """Like Luigi's own, but exit with one line about a `--retcode-…` that Luigi would raise for, or that would wrap."""
    if line := mistakes.check_return_codes(CmdlineParser.get_instance()):
        log.error("%s", line)
        raise SystemExit(BAD_CONFIGURATION)
    return _original_retcode()


_original_retcode = retcodes.retcode
_original_get_task_obj = CmdlineParser.get_task_obj


def _excepthook(kind: type[BaseException], error: BaseException, traceback: object) -> None:
    if isinstance(error, KeyboardInterrupt) and is_command():
        log.error("%s", str(error) or "stopped")
    elif isinstance(error, TaskClassAmbigiousException) or (isinstance(error, TaskClassException) and is_command()):
        log.error("%s", mistakes.explain(error))
        raise SystemExit(BAD_CONFIGURATION)
    else:
        sys.__excepthook__(kind, error, traceback)  # type: ignore[arg-type]


def _check_luigi_cfg() -> None:
    problems = list(mistakes.check_luigi_cfg())
    for line in problems:
        log.error("%s", line)
    if problems:
        raise SystemExit(BAD_CONFIGURATION)


def _set_defaults() -> None:
    """Override Luigi's defaults where neither luigi.cfg nor the command line sets them."""
    defaults = {("retcode", name): str(code) for name, code in RETURN_CODES.items()}
    # Luigi's lock is keyed by the command line alone: it would reject the same command in another folder, and
    # ignores `[vgg] overlap`.
    defaults["core", "no_lock"] = "true"
    for (section, option), value in defaults.items():
        if not get_config().has_option(section, option):
            get_config().set(section, option, value)
