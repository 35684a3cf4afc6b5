"""The child's side of a stage: how it ends when it is asked to."""

from __future__ import annotations

import sys

from luigi_runs import run

from pipeline import stage

PROGRAM = """
import os, signal, threading, time
from pipeline import stage
stage.GRACE_SECONDS = 0.2
stage._install_signals(stage.Reporter(), graceful=True)
with threading._active_limbo_lock:  # as while a thread is being started
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
time.sleep(600)
"""


def test_a_stop_in_the_middle_of_starting_a_thread_ends_the_process_all_the_same(tmp_path):
    done = run([sys.executable, "-c", PROGRAM], tmp_path)
    assert done.output == "goes on\n"
    assert done.rc == stage.EXIT_INTERRUPTED
