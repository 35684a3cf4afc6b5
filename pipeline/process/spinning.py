"""How long OpenMP's threads spin for each other, chosen by the machine's load while MXNet computes.

At the end of every operator its threads wait for the slowest of them. On idle cores spinning is the fastest way to
wait; beside other busy processes it burns the time in which the slowest could run, and a training collapses to a few
per cent. libgomp spins shortly by itself while there are more OpenMP threads than cores (its documentation of
GOMP_SPINCOUNT), so a team of threads that only sleeps switches it over, at once and in a running process. Neither
changes a bit of any result. Where MXNet is built with another OpenMP this does nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: The load is looked at this often; other processes count as busy after so many looks, as gone after so many.
LOOK_SECONDS, BUSY_LOOKS, QUIET_LOOKS = 0.5, 2, 10

#: Cores that other processes may take, beyond those that this one leaves free, before they count as busy.
TOLERATED = 0.25

#: Rounds in which a thread looks for the others before it sleeps: libgomp's default, and what it then makes of it.
LONG, SHORT = 300_000, 1000


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What makes libgomp spin `LONG` and `SHORT`; nothing where the user has chosen.

    Without a policy it would make 100 of `SHORT`, and a policy alone would make `LONG` endless.
    """
    if "GOMP_SPINCOUNT" in given or "OMP_WAIT_POLICY" in given:
        return {}
    return {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": str(LONG)}


class Load:
    """How many cores other processes are using, of those that this one may use, since the last look."""

    def __init__(self, file: Path = Path("/proc/stat")) -> None:
        self._file = file
        self.cores = os.sched_getaffinity(0)
        self._before = self._read()

    def others(self) -> float | None:
        """Cores (0 to all) that others have kept busy since the last call; None where Linux does not tell."""
        before, self._before = self._before, self._read()
        if before is None or self._before is None:
            return None
        moment, busy, own = (new - old for new, old in zip(self._before, before, strict=True))
        return max(0.0, (busy - own) / moment) if moment > 0 else None

    def _read(self) -> tuple[float, float, float] | None:
        """Now, and the seconds for which the cores were busy with anything and with this process."""
        names = {f"cpu{core}" for core in self.cores}
        try:
            lines = [line.split() for line in self._file.read_text().splitlines()]
            # user, nice, system, (idle, waiting for a disk,) interrupts, and what the host gave to other machines
            ticks = [sum(int(line[place]) for place in (1, 2, 3, 6, 7, 8)) for line in lines if line[0] in names]
        except (OSError, ValueError, IndexError):
            return None
        if not ticks:
            return None
        return time.monotonic(), sum(ticks) / os.sysconf("SC_CLK_TCK"), time.process_time()


class Sleepers:
    """A team of OpenMP threads that sleeps; with the `threads` that compute it is more than libgomp counts `cores`.

    `library` is linked with libgomp.
    """

    def __init__(self, library: Any, cores: int, threads: int) -> None:
        self._run = library.GOMP_parallel
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._libc = ctypes.CDLL(None)
        self._count = max(2, cores - threads + 2)  # the thread that leads a team counts for the first one only
        self._bed = ctypes.create_string_buffer(64)  # a semaphore, on which each of them waits
        self._master: threading.Thread | None = None

    @property
    def asleep(self) -> bool:
        return self._master is not None

    def lie_down(self) -> None:
        """From now on threads that wait for each other spin shortly."""
        self._libc.sem_init(self._bed, 0, 0)
        sleep = ctypes.cast(self._libc.sem_wait, ctypes.c_void_p)
        self._master = threading.Thread(target=self._run, args=(sleep, self._bed, self._count, 0), daemon=True)
        self._master.start()

    def get_up(self) -> None:
        """From now on they spin long again: with the thread that leads the team, libgomp ends all of it."""
        if self._master is not None:
            for _ in range(self._count):
                self._libc.sem_post(self._bed)
            self._master.join()
            self._master = None


class Watcher:
    """Looks at the load, and decides how long to spin. `threads` is what OpenMP has here."""

    def __init__(self, load: Load, sleepers: Sleepers, threads: int, tell: Callable[[str], None]) -> None:
        self.load, self.sleepers, self.threads, self.tell = load, sleepers, threads, tell
        self._looks = 0

    def begin(self) -> None:
        """Choose by what the load was since it was first looked at."""
        others = self.load.others()
        if others is None:
            self.tell("OpenMP's threads spin long for each other: this machine does not tell how busy it is")
        elif self._crowded(others):
            self._change(others)
        else:
            self.tell(f"OpenMP's threads spin long for each other: {self._described(others)}")

    def look(self) -> None:
        """Change over once the load has been different for long enough."""
        others = self.load.others()
        if others is None:
            return
        changed = self._crowded(others) != self.sleepers.asleep
        self._looks = self._looks + 1 if changed else 0
        if self._looks >= (QUIET_LOOKS if self.sleepers.asleep else BUSY_LOOKS):
            self._looks = 0
            self._change(others)

    def watch(self) -> None:
        """Look for ever."""
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def _crowded(self, others: float) -> bool:
        return others + self.threads > len(self.load.cores) + TOLERATED

    def _change(self, others: float) -> None:
        if self.sleepers.asleep:
            self.sleepers.get_up()
        else:
            self.sleepers.lie_down()
        how = "shortly" if self.sleepers.asleep else "long"
        self.tell(f"OpenMP's threads spin {how} for each other: {self._described(others)}")

    def _described(self, others: float) -> str:
        return f"other processes use {others:.1f} of {len(self.load.cores)} cores, {self.threads} threads are ours"


def watch(library: Any, load: Load, tell: Callable[[str], None]) -> None:
    """From now on until the process ends, spin as the load has it. `load` was first looked at a moment ago.

    One thread has nobody to spin for, and who set OpenMP's own variables has chosen.
    """
    threads = library.omp_get_max_threads() if hasattr(library, "GOMP_parallel") else 1
    if threads == 1 or os.environ.get("GOMP_SPINCOUNT") != str(LONG):
        return
    watcher = Watcher(load, Sleepers(library, len(load.cores), threads), threads, tell)
    watcher.begin()
    threading.Thread(target=watcher.watch, daemon=True).start()
