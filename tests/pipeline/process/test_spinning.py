"""OpenMP's spinning adapts to the load: how the load is measured, when spinning changes, what libgomp does."""

from __future__ import annotations

import os
import sys

import pytest
from luigi_runs import clean_environment, run

from pipeline.process import spinning
from pipeline.process.cores import thread_environment


class FakeLoad:
    """A machine with four cores whose load the test sets."""

    cores = frozenset(range(4))
    now = 0.0

    def others(self) -> float:
        return self.now


class FakeTeam:
    running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False


@pytest.fixture
def watcher():
    watcher = spinning.Watcher(FakeLoad(), FakeTeam(), 4, lambda line: watcher.lines.append(line))
    watcher.lines = []
    return watcher


def test_the_first_decision_follows_the_load_and_is_logged(watcher):
    watcher.begin()
    assert not watcher.team.running
    watcher.load.now = 3.9
    watcher.begin()
    assert watcher.team.running
    assert watcher.lines == [
        "OpenMP threads spin long: other processes use 0.0 of 4 cores, this one has 4 threads",
        "OpenMP threads spin briefly: other processes use 3.9 of 4 cores, this one has 4 threads",
    ]


def test_it_switches_when_load_appears_and_when_it_has_been_gone_for_a_while(watcher):
    watcher.begin()
    watcher.load.now = 2.0
    watcher.check()
    watcher.load.now = 0.1
    watcher.check()
    watcher.load.now = 2.0
    watcher.check()
    assert not watcher.team.running, "a short burst is no load"
    watcher.check()
    assert watcher.team.running
    watcher.load.now = 0.1
    for _ in range(spinning.QUIET_CHECKS):
        assert watcher.team.running
        watcher.check()
    assert not watcher.team.running
    assert [line.split()[3] for line in watcher.lines] == ["long:", "briefly:", "long:"]


def test_others_may_use_the_cores_that_are_left_free(watcher):
    watcher.threads, watcher.load.now = 2, 2.0
    watcher.begin()
    assert not watcher.team.running


def test_the_load_is_that_of_other_processes_on_the_usable_cores(tmp_path, monkeypatch):
    stat, times = tmp_path / "stat", {"wall": 0.0, "own": 0.0}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2})
    monkeypatch.setattr(spinning.time, "monotonic", lambda: times["wall"])
    monkeypatch.setattr(spinning.time, "process_time", lambda: times["own"])
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    stat.write_text("cpu 9 9 9 9\ncpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0\n")
    load = spinning.Load(stat)
    stat.write_text("cpu 9 9 9 9\ncpu0 999 0 0 0 0 0 0 0\ncpu1 150 20 20 7 7 4 3 3\ncpu2 100 0 0 100 0 0 0 0\n")
    times |= {"wall": 2.0, "own": 1.2}
    assert load.others() == pytest.approx((2.0 + 1.0 - 1.2) / 2)
    stat.unlink()
    assert load.others() == 0


def test_the_users_own_openmp_variables_win():
    assert thread_environment({})["GOMP_SPINCOUNT"] == str(spinning.LONG)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        assert not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(thread_environment({name: "PASSIVE"}))
    assert "MXNET_CPU_PARALLEL_SIZE" not in thread_environment({"MXNET_CPU_PARALLEL_SIZE": "9"})


LIBGOMP = """
import ctypes, os, threading, time
from pipeline.process import spinning
library, libc, gate = ctypes.CDLL("libgomp.so.1"), ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.sem_init(gate, 0, 0)
cores = len(os.sched_getaffinity(0))
team = spinning.SleepingTeam(library, cores, 2)

def spinning_seconds():
    # one of two threads waits for the other, which waits for the timer
    before = time.process_time()
    for _ in range(20):
        libc.sem_post(gate)
        threading.Timer(0.005, libc.sem_post, (gate,)).start()
        library.GOMP_parallel(ctypes.cast(libc.sem_wait, ctypes.c_void_p), gate, 2, 0)
    return time.process_time() - before

threads = lambda: len(os.listdir("/proc/self/task"))
spinning_seconds()
for _ in range(2):
    print(spinning_seconds())
    team.start()
    while threads() < 2 + team._count:
        time.sleep(0.01)
    print(spinning_seconds())
    team.stop()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_libgomp_spins_briefly_while_a_team_sleeps(tmp_path):
    done = run([sys.executable, "-c", LIBGOMP], tmp_path, clean_environment(**spinning.environment({})))
    assert done.rc == 0, done.text
    long, short, long_again, short_again = map(float, done.output.split())
    assert max(short, short_again) < min(long, long_again) / 3


NETWORK = """
import hashlib, os, sys
import numpy as np
from pipeline import runtime
from pipeline.process import spinning
from pipeline.config import Architecture, Training
from pipeline.training.network import Network
mx = runtime.mxnet()
architecture = Architecture(name="tiny", conv_arch=[[1, 16], [1, 32]], dense=[], classes=10)
network = Network(architecture, Training(epochs=1), runtime.devices("cpu"), "float32")
network.initialize(3)
network.start_epoch([])
"""

EXACT = """
team = spinning.SleepingTeam(mx.base._LIB, 2, 2)
random = np.random.RandomState(0)
for step in range(6):
    if sys.argv[1] == "change":
        team.stop() if step % 2 else team.start()
    images = random.rand(16, 3, 32, 32).astype(np.float32)
    network.step(images, random.randint(0, 10, 16).astype(np.float32), 0.05, step, 16)
parameters, _ = network.state()
print(hashlib.sha256(b"".join(parameters[name].tobytes() for name in sorted(parameters))).hexdigest())
"""


def test_switching_changes_no_bit_of_the_weights(tmp_path):
    environment = clean_environment(OMP_NUM_THREADS="2", GOMP_SPINCOUNT="20000", OMP_WAIT_POLICY="ACTIVE")
    hashes = [run([sys.executable, "-c", NETWORK + EXACT, how], tmp_path, environment) for how in ("stay", "change")]
    assert all(done.rc == 0 for done in hashes), hashes
    assert hashes[0].output == hashes[1].output != ""


ONE_TEAM = """
for count in (16, 256):
    for step in range(2):
        network.step(np.ones((count, 3, 32, 32), np.float32), np.zeros(count, np.float32), 0.05, step, count)
    parameters, _ = network.state()
    print(len(os.listdir("/proc/self/task")))
"""


def test_a_large_batch_starts_no_second_team_of_threads_in_mxnet(tmp_path):
    done = run([sys.executable, "-c", NETWORK + ONE_TEAM], tmp_path, clean_environment(OMP_NUM_THREADS="2"))
    assert done.rc == 0, done.text
    small, large = done.output.split()
    assert small == large
