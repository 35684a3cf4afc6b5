"""SIGTERM and SIGINT under the `luigi` command, in the processes that it forks, too."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from luigi.worker import TaskProcess

from pipeline.process.parent import Stopped
from tasks.exit_codes import exit_with, is_command


def forked_for_a_task() -> bool:
    """Whether Luigi forked this process to run one task in it (`--workers 2`)."""
    return isinstance(multiprocessing.current_process(), TaskProcess)


def take_signals() -> None:
    """Let SIGTERM end this `luigi` command, if it is one, as Ctrl-C does: Luigi then ends what it forked."""
    if threading.current_thread() is not threading.main_thread() or not is_command():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    if multiprocessing.parent_process():  # forked for one task, which has not started its work
        os._exit(128 + number)
    exit_with(128 + number)
    raise Stopped("stopped on request", number)


def ask_for_no_more_work() -> None:
    """Let this command end once what is running is done."""
    if is_command() and callable(signal.getsignal(signal.SIGUSR1)):
        parent = multiprocessing.parent_process()
        os.kill(parent.pid if parent and parent.pid else os.getpid(), signal.SIGUSR1)  # Luigi's own way to ask
