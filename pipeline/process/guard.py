"""A command that does not outlive the one who wanted it: `python guard.py PARENT COMMAND…`, run by `launcher`.

Stays between a training's parent and its launcher, passes signals on, and ends as the command ended. When the parent
dies it sends the launcher one SIGINT: srun then takes a job that still waits out of the queue (killed, it would leave
it there, to hold a node for nothing later) and leaves a running one alone, which checkpoints when its standard input
ends. A second SIGINT would kill the job, so the launcher is not simply made to get one by the kernel: that comes once
for every thread of the parent. Imports nothing of the plugin, so that it starts in a moment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def main(parent: int, command: list[str]) -> None:
    """Run `command` to its end."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGHUP)
    # srun ends its job at once when nobody reads its output any more: keep it readable.
    os.open("/proc/self/fd/1", os.O_RDONLY)
    own = os.getpid()
    child = os.fork()
    if child == 0:
        libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() == own:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(command[0], command)
        os._exit(1)
    _pass_signals_on(child)
    if os.getppid() != parent:
        os.kill(own, signal.SIGHUP)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(own, os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _pass_signals_on(child: int) -> None:
    told: list[int] = []

    def parent_died(number: int, frame: object) -> None:
        if not told:
            told.append(number)
            os.kill(child, signal.SIGINT)

    signal.signal(signal.SIGHUP, parent_died)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: os.kill(child, n))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
