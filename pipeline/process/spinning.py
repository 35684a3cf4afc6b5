"""How long OpenMP's threads spin while they wait for each other, adapted to the machine's load.

At the end of every operator the threads wait for the slowest of them. On idle cores spinning is the fastest way to
wait; beside other busy processes it burns the time in which the slowest could run, and the speed of a training falls
to a few per cent. libgomp spins only briefly while there are more OpenMP threads than cores (see its documentation of
GOMP_SPINCOUNT), so a team of sleeping threads makes it do so, at once and in a running process. No result changes in
a bit. Where MXNet is built with another OpenMP this does nothing.

MXNet itself would start a second team: in the thread that hands over a batch, for copies of 200,000 numbers and more.
From then on libgomp would spin briefly to the end of the process. So those copies are made by one thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: The load is checked this often; other processes count as busy after so many checks, as gone after so many.
CHECK_SECONDS, BUSY_CHECKS, QUIET_CHECKS = 0.5, 2, 10

#: What the first decision is based on.
FIRST_SECONDS = 0.2

#: Cores that other processes may take, beyond those that this one leaves free, before they count as busy.
TOLERATED = 0.25

#: How often a waiting thread looks for the others before it sleeps: libgomp's default, and with too many threads.
LONG, SHORT = 300_000, 1000

#: Copies of fewer numbers are made by one thread; MXNet's default is 200,000.
ONE_THREAD_COPIES = {"MXNET_CPU_PARALLEL_SIZE": str(2**31 - 1)}


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables that make libgomp spin `LONG` and `SHORT`, and MXNet keep to one team; what the user set wins.

    Without a policy it would make 100 of `SHORT`, and a policy alone would make `LONG` endless.
    """
    waiting = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": str(LONG)}
    copies = {name: value for name, value in ONE_THREAD_COPIES.items() if name not in given}
    return copies if waiting.keys() & set(given) else waiting | copies


class Load:
    """How many cores other processes are using, of those that this one may use, since the last check."""

    def __init__(self, file: Path = Path("/proc/stat")) -> None:
        self._file = file
        self.cores = os.sched_getaffinity(0)
        self._before = self._read()

    def others(self) -> float:
        """Cores (0 to all) that others have kept busy since the last call; 0 where that is unknown."""
        before, self._before = self._before, self._read()
        moment, busy, own = (new - old for new, old in zip(self._before, before, strict=True))
        return max(0.0, (busy - own) / moment) if moment > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Now, and the seconds for which the cores were busy with anything and with this process."""
        names = {f"cpu{core}" for core in self.cores}
        try:
            lines = [line.split() for line in self._file.read_text().splitlines()]
            # user, nice, system, (idle, waiting for a disk,) interrupts, and what the host gave to other machines
            ticks = [sum(int(line[place]) for place in (1, 2, 3, 6, 7, 8)) for line in lines if line[0] in names]
        except (OSError, ValueError, IndexError):
            ticks = []
        return time.monotonic(), sum(ticks) / os.sysconf("SC_CLK_TCK"), time.process_time()


class SleepingTeam:
    """Threads of libgomp (`library`) that only sleep; with the `threads` that compute they are more than `cores`."""

    def __init__(self, library: Any, cores: int, threads: int) -> None:
        self._run = library.GOMP_parallel
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._libc = ctypes.CDLL(None)
        self._count = max(2, cores - threads + 2)  # the thread that leads a team counts for the first one only
        self._semaphore = ctypes.create_string_buffer(64)  # each of them waits for it
        self._master: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self._master is not None

    def start(self) -> None:
        """From now on threads that wait for each other spin briefly."""
        self._libc.sem_init(self._semaphore, 0, 0)
        sleep = ctypes.cast(self._libc.sem_wait, ctypes.c_void_p)
        self._master = threading.Thread(target=self._run, args=(sleep, self._semaphore, self._count, 0), daemon=True)
        self._master.start()

    def stop(self) -> None:
        """From now on they spin long again. libgomp ends the whole team with its master thread."""
        if self._master is not None:
            for _ in range(self._count):
                self._libc.sem_post(self._semaphore)
            self._master.join()
            self._master = None


class Watcher:
    """Checks the load and decides how long to spin. `threads` is how many OpenMP has here."""

    def __init__(self, load: Load, team: SleepingTeam, threads: int, log: Callable[[str], None]) -> None:
        self.load, self.team, self.threads, self.log = load, team, threads, log
        self._checks = 0

    def begin(self) -> None:
        """Decide by the load since `load` was made."""
        others = self.load.others()
        if self._crowded(others):
            self.team.start()
        self._tell(others)

    def check(self) -> None:
        """Decide again once the load has been different for long enough."""
        others = self.load.others()
        changed = self._crowded(others) != self.team.running
        self._checks = self._checks + 1 if changed else 0
        if self._checks >= (QUIET_CHECKS if self.team.running else BUSY_CHECKS):
            self._checks = 0
            if self.team.running:
                self.team.stop()
            else:
                self.team.start()
            self._tell(others)

    def run(self) -> None:
        """Decide, and check for ever."""
        time.sleep(FIRST_SECONDS)
        self.begin()
        while True:
            time.sleep(CHECK_SECONDS)
            self.check()

    def _crowded(self, others: float) -> bool:
        return others + self.threads > len(self.load.cores) + TOLERATED

    def _tell(self, others: float) -> None:
        how = "briefly" if self.team.running else "long"
        told = f"other processes use {others:.1f} of {len(self.load.cores)} cores, this one has {self.threads} threads"
        self.log(f"OpenMP threads spin {how}: {told}")


def watch(library: Any, log: Callable[[str], None]) -> None:
    """From now on adapt to the load. Not for one thread, which waits for nobody, nor where the user set variables."""
    threads = library.omp_get_max_threads() if hasattr(library, "GOMP_parallel") else 1
    watched = any(thread.name == __name__ for thread in threading.enumerate())
    if watched or threads == 1 or os.environ.get("GOMP_SPINCOUNT") != str(LONG):
        return
    load = Load()
    watcher = Watcher(load, SleepingTeam(library, len(load.cores), threads), threads, log)
    threading.Thread(target=watcher.run, name=__name__, daemon=True).start()
