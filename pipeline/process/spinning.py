"""Adapt how long OpenMP threads spin while they wait for each other to the machine's load.

After every operator the threads wait for the slowest one. Spinning is the fastest way to wait on idle cores, but beside
other busy processes it takes the time in which the slowest thread could run, and slows training to a few per cent of
its speed. libgomp spins only briefly while there are more OpenMP threads than cores (see its GOMP_SPINCOUNT), so a team
of sleeping threads switches a running process to short spins. Results stay identical to the bit. Does nothing if MXNet
is built with another OpenMP.

MXNet itself would start a second team for copying batches of 200,000 numbers and more, and libgomp would then always
spin briefly. So a single thread makes those copies.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Interval of the load checks, and consecutive checks before switching to short spins and back to long ones.
CHECK_SECONDS, BUSY_CHECKS, QUIET_CHECKS = 0.5, 2, 10

#: Length of the load measurement before the first decision.
FIRST_SECONDS = 0.2

#: Cores that other processes may use, beyond those this one leaves free, before the machine counts as busy.
TOLERATED = 0.25

#: Spins of a waiting thread before it sleeps: libgomp's default, and its value when there are too many threads.
LONG, SHORT = 300_000, 1000

#: MXNet's threshold for multi-threaded copies, 200,000 numbers by default; this value turns them off.
ONE_THREAD_COPIES = {"MXNET_CPU_PARALLEL_SIZE": str(2**31 - 1)}


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables that set libgomp's spins to `LONG` and `SHORT` and MXNet to one team. The user's own settings win.

    Without a wait policy libgomp would lower `SHORT` to 100; with a policy alone, `LONG` would be infinite.
    """
    waiting = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": str(LONG)}
    copies = {name: value for name, value in ONE_THREAD_COPIES.items() if name not in given}
    return copies if waiting.keys() & set(given) else waiting | copies


class Load:
    """Measures how many of this process's cores others are using."""

    def __init__(self, file: Path = Path("/proc/stat")) -> None:
        self._file = file
        self.cores = os.sched_getaffinity(0)
        self._before = self._read()

    def others(self) -> float:
        """Cores (0 to all) that other processes kept busy since the last call; 0 if unknown."""
        before, self._before = self._before, self._read()
        elapsed, busy, own = (new - old for new, old in zip(self._before, before, strict=True))
        return max(0.0, (busy - own) / elapsed) if elapsed > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """The time, and the seconds for which all processes, and this one, have kept the cores busy."""
        names = {f"cpu{core}" for core in self.cores}
        try:
            lines = [line.split() for line in self._file.read_text().splitlines()]
            # user, nice, system, (not idle, iowait,) irq, softirq, steal
            ticks = [sum(int(line[column]) for column in (1, 2, 3, 6, 7, 8)) for line in lines if line[0] in names]
        except (OSError, ValueError, IndexError):
            ticks = []
        return time.monotonic(), sum(ticks) / os.sysconf("SC_CLK_TCK"), time.process_time()


class SleepingTeam:
    """A team of sleeping libgomp (`library`) threads that, with the `threads` that compute, outnumber the `cores`."""

    def __init__(self, library: Any, cores: int, threads: int) -> None:
        self._run = library.GOMP_parallel
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._libc = ctypes.CDLL(None)
        self._count = max(2, cores - threads + 2)  # libgomp counts the leading thread of the first team only
        self._semaphore = ctypes.create_string_buffer(64)  # all of them wait for it
        self._master: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self._master is not None

    def start(self) -> None:
        """Switch to short spins."""
        self._libc.sem_init(self._semaphore, 0, 0)
        sleep = ctypes.cast(self._libc.sem_wait, ctypes.c_void_p)
        self._master = threading.Thread(target=self._run, args=(sleep, self._semaphore, self._count, 0), daemon=True)
        self._master.start()

    def stop(self) -> None:
        """Switch back to long spins. libgomp ends the whole team with its master thread."""
        if self._master is not None:
            for _ in range(self._count):
                self._libc.sem_post(self._semaphore)
            self._master.join()
            self._master = None


class Watcher:
    """Checks the load and decides how long to spin. `threads` is the number of OpenMP threads."""

    def __init__(self, load: Load, team: SleepingTeam, threads: int, log: Callable[[str], None]) -> None:
        self.load, self.team, self.threads, self.log = load, team, threads, log
        self._checks = 0

    def begin(self) -> None:
        """Decide from the load since `load` was created."""
        others = self.load.others()
        if self._overloaded(others):
            self.team.start()
        self._report(others)

    def check(self) -> None:
        """Switch once the load has been different for long enough."""
        others = self.load.others()
        changed = self._overloaded(others) != self.team.running
        self._checks = self._checks + 1 if changed else 0
        if self._checks >= (QUIET_CHECKS if self.team.running else BUSY_CHECKS):
            self._checks = 0
            if self.team.running:
                self.team.stop()
            else:
                self.team.start()
            self._report(others)

    def run(self) -> None:
        """Check for ever."""
        time.sleep(FIRST_SECONDS)
        self.begin()
        while True:
            time.sleep(CHECK_SECONDS)
            self.check()

    def _overloaded(self, others: float) -> bool:
        return others + self.threads > len(self.load.cores) + TOLERATED

    def _report(self, others: float) -> None:
        how = "briefly" if self.team.running else "long"
        load = f"other processes use {others:.1f} of {len(self.load.cores)} cores, this one has {self.threads} threads"
        self.log(f"OpenMP threads spin {how}: {load}")


def watch(library: Any, log: Callable[[str], None]) -> None:
    """Start adapting to the load in a thread. Does nothing with one OpenMP thread or if the user set the variables."""
    threads = library.omp_get_max_threads() if hasattr(library, "GOMP_parallel") else 1
    running = any(thread.name == __name__ for thread in threading.enumerate())
    if running or threads == 1 or os.environ.get("GOMP_SPINCOUNT") != str(LONG):
        return
    load = Load()
    watcher = Watcher(load, SleepingTeam(library, len(load.cores), threads), threads, log)
    threading.Thread(target=watcher.run, name=__name__, daemon=True).start()
