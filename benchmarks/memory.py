"""Peak memory of the whole chain, by stage: sampled total resident memory of Luigi and all its processes.

RSS counts shared pages once per process that maps them, so the true figure is slightly lower.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import psutil

from pipeline.workspace import Workspace, events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(bench.ROOT / "config" / "vgg11-fast.yaml"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        workspace = Path(folder) / "artifacts"
        command = bench.luigi_command("Report", "--config", options.config, "--workspace", str(workspace))
        with open(Path(folder) / "log", "wb") as log:
            peaks = watch(subprocess.Popen(command, stdout=log, stderr=log), Workspace(workspace))
    rows = [(stage, f"{peak / 1e6:,.0f} MB") for stage, peak in peaks.items()]
    rows.append(("whole chain, peak", f"{max(peaks.values()) / 1e6:,.0f} MB"))
    bench.table(Path(options.config).name, ("stage", "peak resident memory"), rows)
    bench.finish("memory", {"config": options.config, "peak_bytes": peaks})


def watch(luigi: subprocess.Popen[bytes], workspace: Workspace) -> dict[str, int]:
    """Return the peak memory in bytes of the process and its descendants, by running stage."""
    peaks: dict[str, int] = {}
    process = psutil.Process(luigi.pid)
    while luigi.poll() is None:
        last = (events.read(workspace) or [{"event": ""}])[-1]
        stage, total = last["stage"] if last["event"] == "started" else "luigi alone", 0
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
        peaks[stage] = max(peaks.get(stage, 0), total)
        time.sleep(0.02)
    if luigi.returncode:
        sys.exit(f"the chain exited with {luigi.returncode}")
    return peaks


if __name__ == "__main__":
    main()
