"""SIGTERM and SIGINT in the `luigi` command and the processes that it forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from luigi.worker import TaskProcess

from pipeline.process import liveness
from pipeline.process.parent import Stopped
from tasks.exit_codes import is_command, request_exit_code


def in_task_process() -> bool:
    """Whether Luigi forked this process to run one task (`--workers 2`)."""
    return isinstance(multiprocessing.current_process(), TaskProcess)


def end_with_command() -> None:
    """If Luigi forked this process for one task (`--workers 2`), end it with SIGTERM when the luigi command dies."""
    parent = multiprocessing.parent_process()
    if in_task_process() and parent and parent.pid:
        liveness.end_with_parent(parent.pid)


def install_signal_handlers() -> None:
    """Make SIGTERM end the `luigi` command like Ctrl-C, so that Luigi ends its forked processes. No-op elsewhere."""
    if threading.current_thread() is not threading.main_thread() or not is_command():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    if multiprocessing.parent_process():  # forked for a task that has not started its work
        os._exit(128 + number)
    request_exit_code(128 + number)
    raise Stopped("stopped on request", number)


def stop_requesting_work() -> None:
    """Make the `luigi` command exit once its running tasks are done. No-op elsewhere."""
    if is_command() and callable(signal.getsignal(signal.SIGUSR1)):
        parent = multiprocessing.parent_process()
        os.kill(parent.pid if parent and parent.pid else os.getpid(), signal.SIGUSR1)  # Luigi's own signal for this
