"""The child's side of a stage: how it stops on request."""

from __future__ import annotations

import sys

from luigi_runs import run

from pipeline.process import child

PROGRAM = """
import os, signal, threading, time
from pipeline.process import child as stage
stage.GRACE_SECONDS = 0.2
stage._install_signals(stage.Reporter(), graceful=True)
threading.Thread.start = None  # as if the process limit were reached
os.kill(os.getpid(), signal.SIGTERM)
print("still running", flush=True)
time.sleep(600)
"""


def test_a_stop_request_starts_no_thread_and_ends_a_hanging_process(tmp_path):
    done = run([sys.executable, "-c", PROGRAM], tmp_path)
    assert done.output == "still running\n"
    assert done.rc == child.EXIT_INTERRUPTED
