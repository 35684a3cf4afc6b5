"""How much busy processes slow down a training, while they run and after they end.

Busy processes start and stop beside one training (the quickstart's network and data). `spinning` waits as OpenMP does
by default, `adapted` as this plugin does. The fair share is the idle speed times the share of the cores that one plain
process per training thread gets. Goals on an otherwise idle machine: adapted reaches 98 % of spinning, and half of the
fair share beside the busy processes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import msgspec

from pipeline import config
from pipeline.errors import Interrupted
from pipeline.process import parent, spinning
from pipeline.process.cores import usable_cores
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain

BUSY = "while True: pass"
PHASES = ("idle", "busy", "idle again")

#: One more than libgomp's default: set by the user, so the plugin leaves it alone.
SPINNING = {"GOMP_SPINCOUNT": str(spinning.LONG + 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=2 * usable_cores(), help="number of busy processes")
    parser.add_argument("--seconds", type=float, default=20, help="length of each of the three phases, at least 10")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.seconds < 10:
        parser.error(f"--seconds: found {options.seconds:g}, expected at least 10: progress arrives every few seconds")
    measured: dict[str, list[list[float]]] = {"spinning": [], "adapted": []}
    shares = [fair_share(options.busy, options.seconds / 4) for _ in range(options.rounds)]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        chain = prepare(Path(name))
        for _ in range(options.rounds):
            for mode, environment in (("spinning", SPINNING), ("adapted", {})):
                measured[mode].append(speeds(chain, options.busy, options.seconds, environment))
    report(measured, bench.median(shares), options.busy)


def prepare(folder: Path) -> Chain:
    """Prepare the quickstart with its data set and more epochs than it can finish."""
    quickstart = config.load("config/quickstart.yaml")
    training = msgspec.structs.replace(quickstart.training, epochs=10_000)
    chain = Chain(Workspace(folder / "artifacts"), msgspec.structs.replace(quickstart, training=training))
    parent.run_stage("dataset", chain, log=folder / "dataset.log")
    return chain


def speeds(chain: Chain, busy: int, seconds: float, environment: dict[str, str]) -> list[float]:
    """Measure images per second in each phase, without its first quarter."""
    progress: list[tuple[float, int]] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and "step" in event:
            progress.append((time.monotonic(), event["step"] * chain.config.training.batch_size))

    rates: list[float] = []
    with contextlib.ExitStack() as others, mock.patch.dict(os.environ, environment):

        def commands() -> list[str]:
            if len(rates) == len(PHASES):
                return ["stop"]
            if progress and progress[-1][0] - progress[0][0] >= seconds:
                first = next(item for item in progress if item[0] - progress[0][0] >= seconds / 4)
                rates.append((progress[-1][1] - first[1]) / (progress[-1][0] - first[0]))
                progress.clear()
                others.close()
                if len(rates) == 1:
                    others.enter_context(beside(busy))
            return []

        run = chain.run()
        assert run is not None
        with contextlib.suppress(Interrupted):
            parent.run_stage("train", chain, log=run.log("train"), on_event=on_event, take_commands=commands)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return rates


@contextlib.contextmanager
def beside(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `count` busy processes in their own session, like those of another user."""
    command = ["sh", "-c", '"$@" & ' * (count - 1) + 'exec "$@"', "sh", sys.executable, "-c", BUSY]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield [process]
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def fair_share(busy: int, seconds: float) -> float:
    """Measure the share of the cores that one busy process per training thread gets beside `busy` others."""
    with beside(busy), beside(usable_cores()) as mine:
        before = _cpu_seconds(mine[0].pid)
        time.sleep(seconds)
        return (_cpu_seconds(mine[0].pid) - before) / seconds / usable_cores()


def _cpu_seconds(session: int) -> float:
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def report(measured: dict[str, list[list[float]]], share: float, busy: int) -> None:
    fair = bench.median([values[0] for values in measured["spinning"]]) * share
    rows = []
    for mode, rounds in measured.items():
        idle, loaded, again = (bench.median(values) for values in zip(*rounds, strict=True))
        rows.append((mode, f"{idle:,.0f}", f"{loaded:,.0f} ({loaded / fair:.0%} of fair)", f"{again:,.0f}"))
    title = (
        f"images/s, {busy} busy processes, median of {len(measured['spinning'])}; fair share: {fair:,.0f} ({share:.0%})"
    )
    bench.table(title, ("OpenMP threads", *PHASES), rows)
    bench.finish("busy", {"images_per_second": measured, "busy": busy, "fair_share": share})


if __name__ == "__main__":
    main()
