"""A short run of the benchmark behind the fault table."""

from __future__ import annotations

import subprocess
import sys

from luigi_runs import CHECKOUT


def test_three_kills_at_random_moments_are_survived_with_identical_weights() -> None:
    script = str(CHECKOUT / "benchmarks" / "faults.py")
    line = [sys.executable, script, "--tries", "3", "--no-results"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 of 3") == 2  # survived, identical
