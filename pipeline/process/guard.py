"""Run a command that does not outlive its parent: `python guard.py PARENT COMMAND…`, used by `launcher`.

Forwards signals to the command, a launcher, and exits as it did. When the parent dies, it sends the launcher a single
SIGINT: srun then cancels a pending job (if killed, it would leave the job in the queue) and leaves a running job alone,
which checkpoints when its standard input closes. A second SIGINT would kill the job, so the launcher
itself must not have PR_SET_PDEATHSIG, which fires once per thread of the parent. Imports nothing from the plugin, to
start fast.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def main(parent: int, command: list[str]) -> None:
    """Run `command` and exit with its status."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGHUP)
    # srun ends its job as soon as nobody reads its output, so keep a read end open.
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
    _forward_signals(child)
    if os.getppid() != parent:
        os.kill(own, signal.SIGHUP)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(own, os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _forward_signals(child: int) -> None:
    interrupted = False

    def parent_died(number: int, frame: object) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            os.kill(child, signal.SIGINT)

    signal.signal(signal.SIGHUP, parent_died)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: os.kill(child, n))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
