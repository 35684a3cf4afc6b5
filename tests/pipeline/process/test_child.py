"""The child's side of a stage: how it ends when it is asked to."""

from __future__ import annotations

import sys

from luigi_runs import run

from pipeline.process import child

PROGRAM = """
import os, signal, threading, time
from pipeline.process import child as stage
stage.GRACE_SECONDS = 0.2
stage._install_signals(stage.Reporter(), graceful=True)
threading.Thread.start = None  # as where no more processes may be started
os.kill(os.getpid(), signal.SIGTERM)
print("goes on", flush=True)
time.sleep(600)
"""


def test_asking_for_a_stop_starts_no_thread_and_ends_what_hangs(tmp_path):
    done = run([sys.executable, "-c", PROGRAM], tmp_path)
    assert done.output == "goes on\n"
    assert done.rc == child.EXIT_INTERRUPTED
