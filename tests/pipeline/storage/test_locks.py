"""Locks: one worker at a time, who it is, and that no dead process holds one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from luigi_runs import CHECKOUT, LIMIT, clean_environment

from pipeline.errors import AlreadyRunning
from pipeline.storage import locks

HOLD = """
import sys, pathlib
from pipeline.storage import locks
with locks.hold(pathlib.Path(sys.argv[1]), "train x", wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "locks" / "train.lock"


@pytest.fixture
def other(path):
    """Another process that holds the lock until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=CHECKOUT, env=clean_environment(), **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.stdin.close()
        process.wait(LIMIT)


def test_a_held_lock_is_refused_and_names_its_holder(path, other):
    assert locks.holder(path).pid == other.pid
    assert json.loads(path.read_text()).keys() == {"host", "pid", "since"}, "no command line: it may hold a token"
    refusal = pytest.raises(AlreadyRunning, match=f"train x is already being worked on by process {other.pid} on ")
    with refusal, locks.hold(path, "train x", wait=False):
        pass


def test_a_lock_ends_with_its_holder_even_if_that_is_killed(path, other):
    other.send_signal(signal.SIGKILL)
    other.wait(LIMIT)
    assert locks.holder(path) is None
    assert path.exists(), "the file does not block anybody"
    with locks.hold(path, "train x", wait=False):
        assert locks.holder(path).pid == os.getpid()
    assert locks.holder(path) is None


def test_waiting_names_the_holder_and_ends_when_the_lock_is_free(path, other):
    lines = []

    def on_wait(line):
        lines.append(line)
        other.stdin.close()

    with locks.hold(path, "train x", wait=True, on_wait=on_wait):
        assert locks.holder(path).pid == os.getpid()
    assert len(lines) == 1
    assert lines[0].startswith(f"train x: waiting for process {other.pid} on ")


def test_a_child_that_inherited_the_lock_keeps_it(path):
    with locks.hold(path, "train x", wait=False) as descriptor:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(descriptor,))
    try:
        assert locks.holder(path) is not None
    finally:
        child.stdin.close()
        child.wait(LIMIT)
    assert locks.holder(path) is None


def test_two_threads_never_hold_the_same_lock(path):
    inside, most = [], []

    def work():
        with locks.hold(path, "x", wait=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert most == [1, 1, 1]


def test_a_lock_that_was_never_held_is_free(path):
    assert locks.holder(path) is None
    assert not path.parent.exists(), "asking creates nothing"


def test_asking_for_the_holder_never_makes_a_start_fail(path):
    """`holder` shares the lock for a moment; `hold` at that moment succeeds all the same."""
    done = threading.Event()

    def ask():
        while not done.is_set():
            locks.holder(path)

    with locks.hold(path, "x", wait=False):
        pass
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            with locks.hold(path, "x", wait=False):
                pass
    finally:
        done.set()
        for thread in threads:
            thread.join(LIMIT)


def test_a_lock_works_on_a_full_disk(path, monkeypatch):
    monkeypatch.setattr(locks, "ENDING_SECONDS", 0.5)
    with locks.hold(path, "prune", wait=False):
        pass
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # nothing can be written any more
    try:
        with locks.hold(path, "prune", wait=False), pytest.raises(AlreadyRunning), locks.hold(path, "x", wait=False):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_shared_lock_cannot_be_held(path):
    with locks.share(path, "train a"), locks.share(path, "train b"):
        refusal = pytest.raises(AlreadyRunning, match="data set x is in use by a running stage")
        with refusal, locks.hold(path, "data set x", wait=False):
            pass
    with locks.hold(path, "data set x", wait=False):
        pass


@pytest.mark.parametrize("plant", [os.symlink, lambda target, path: os.mkfifo(path)])
def test_a_link_or_a_pipe_in_place_of_a_lock_file_is_refused_and_left_alone(path, tmp_path, plant):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path.parent.mkdir()
    plant(victim, path)
    refusal = pytest.raises(OSError, match="it is a link, a pipe or a folder, not a regular file: remove it")
    with refusal, locks.hold(path, "x", wait=False):
        pass
    assert locks.holder(path) is None
    assert victim.read_text() == "mine"


def test_removing_a_lock_keeps_a_new_one_just_created_in_its_place(path, monkeypatch):
    with locks.hold(path, "x", wait=False):
        pass
    opened = locks.open_regular

    def late(*about):
        descriptor = opened(*about)
        monkeypatch.undo()
        path.unlink()  # as another process that removes it
        held.enter_context(locks.hold(path, "x", wait=False))
        return descriptor

    with contextlib.ExitStack() as held:
        monkeypatch.setattr(locks, "open_regular", late)
        locks.remove(path)
        assert locks.holder(path) is not None
    locks.remove(path)
    assert not path.exists()
    locks.remove(path)


def test_another_users_hidden_process_is_alive(monkeypatch):
    nobody = 2**22 + 1  # a number that no process has, as if /proc were mounted with hidepid
    assert locks.is_gone(nobody)

    def refuse(*about):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not locks.is_gone(nobody)


def test_a_process_of_any_name_is_alive():
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'\\xff) Z 1', 0, 0, 0); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert not locks.is_gone(process.pid)
        process.communicate(b"\n")
    for number in (process.pid, "", "1.5", 10**30):
        assert locks.is_gone(number), number


def test_a_host_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.socket, "gethostname", lambda: "bü\udcfcro")
    with locks.hold(tmp_path / "a.lock", "a", wait=False):
        assert locks.holder(tmp_path / "a.lock").host == r"b\xfc\udcfcro"
