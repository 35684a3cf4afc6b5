"""What other busy processes cost a training, when they come and when they are gone again.

One training (the quickstart's network and data) goes on while busy processes start and end beside it; `fair` is the
speed on an idle machine times the share of the cores that as many plain busy processes get there as the training has
threads. `adapted` is the plugin as it is, `long` spins as OpenMP does by itself. Wanted: adapted, at least 98 % of
`long` when idle and at least half of the fair share when not. The machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline import config
from pipeline.errors import Interrupted
from pipeline.process import parent, spinning
from pipeline.process.cores import usable_cores
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain

BUSY = "while True: pass"
PHASES = ("idle", "busy", "idle again")

#: One round more than libgomp's default: the user has chosen, so nothing is adapted.
LONG = {"GOMP_SPINCOUNT": str(spinning.LONG + 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=2 * usable_cores(), help="how many busy processes")
    parser.add_argument("--seconds", type=float, default=20, help="how long each of the three phases takes")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: dict[str, list[list[float]]] = {"long": [], "adapted": []}
    shares = [fair_share(options.busy, options.seconds / 4) for _ in range(options.rounds)]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        chain = prepared(Path(name))
        for _ in range(options.rounds):
            for how, environment in (("long", LONG), ("adapted", {})):
                rows[how].append(speeds(chain, options.busy, options.seconds, environment))
    report(rows, statistics.median(shares), options.busy)


def prepared(folder: Path) -> Chain:
    """The quickstart with its data set made, and more epochs than there will be time for."""
    quickstart = config.load("config/quickstart.yaml")
    training = msgspec.structs.replace(quickstart.training, epochs=10_000)
    chain = Chain(Workspace(folder / "artifacts"), msgspec.structs.replace(quickstart, training=training))
    parent.run_stage("dataset", chain, log=folder / "dataset.log")
    return chain


def speeds(chain: Chain, busy: int, seconds: float, environment: dict[str, str]) -> list[float]:
    """Images a second in each phase, the first quarter of which is for getting used to it."""
    seen: list[tuple[float, int]] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and "step" in event:
            seen.append((time.monotonic(), event["step"] * chain.config.training.batch_size))

    found: list[float] = []
    with contextlib.ExitStack() as others, changed(environment):

        def commands() -> list[str]:
            if len(found) == len(PHASES):
                return ["stop"]
            if seen and seen[-1][0] - seen[0][0] >= seconds:
                first = next(item for item in seen if item[0] - seen[0][0] >= seconds / 4)
                found.append((seen[-1][1] - first[1]) / (seen[-1][0] - first[0]))
                seen.clear()
                others.close()
                if len(found) == 1:
                    others.enter_context(beside(busy))
            return []

        run = chain.run()
        assert run is not None
        with contextlib.suppress(Interrupted):
            parent.run_stage("train", chain, log=run.log("train"), on_event=on_event, take_commands=commands)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return found


@contextlib.contextmanager
def changed(environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def beside(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many busy processes, in a session of their own as another user's are."""
    command = ["sh", "-c", '"$@" & ' * (count - 1) + 'exec "$@"', "sh", sys.executable, "-c", BUSY]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield [process]
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def fair_share(busy: int, seconds: float) -> float:
    """The share of the cores that as many busy processes as there are threads get beside `busy` others."""
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


def report(rows: dict[str, list[list[float]]], share: float, busy: int) -> None:
    medians = {how: [statistics.median(values) for values in zip(*rounds, strict=True)] for how, rounds in rows.items()}
    print(f"images/s, median of {len(rows['long'])}, {busy} busy processes, {usable_cores()} threads")
    for how, values in medians.items():
        print(f"{how:>8}: " + ", ".join(f"{name} {value:,.0f}" for name, value in zip(PHASES, values, strict=True)))
    fair = medians["long"][0] * share
    print(f"fair share when busy: {share:.0%}, {fair:,.0f} images/s")
    adapted, long = medians["adapted"], medians["long"]
    print(f"adapted: idle {adapted[0] / long[0]:.1%} of long, idle again {adapted[2] / long[0]:.1%}, ", end="")
    print(f"busy {adapted[1] / fair:.0%} of the fair share (long: {long[1] / fair:.0%})")


if __name__ == "__main__":
    main()
