"""The cost of checkpoints: full-width VGG-11 (`config/vgg11.yaml`) in the real training process.

Trains with a checkpoint every `--every` seconds and without any, in turns: the difference of the medians, divided by
the number of checkpoints, is the cost of one; divided by 60, its share at the default `checkpoint_seconds`. Then kills
a training and measures the time from restart to its first new step. Takes about ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench

from pipeline import config, model
from pipeline.files import human_size
from pipeline.process import parent
from pipeline.workspace import Run, Workspace
from pipeline.workspace.freshness import Chain

NEVER = 1e9


@dataclasses.dataclass
class Watch:
    """Watches the checkpoint folder during a training: when each file is begun and when it gets its final name."""

    folder: Path
    begun: float | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    names: set[str] = dataclasses.field(default_factory=set)
    size: int = 0
    done: bool = False

    def run(self) -> None:
        while not self.done:
            found = {path.name: path for path in self.folder.glob("step-*.npz")} if self.folder.exists() else {}
            if self.begun is None and any(self.folder.glob(".step-*.tmp")):
                self.begun = time.monotonic()
            for name in found.keys() - self.names:
                self.names.add(name)
                self.size = max(self.size, found[name].stat().st_size if found[name].exists() else 0)
                if self.begun is not None:
                    self.seconds.append(time.monotonic() - self.begun)
                self.begun = None
            time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/vgg11.yaml")
    parser.add_argument("--data", default="bundled", help="archive of CIFAR-10; default: the bundled sample")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two checkpoints while measuring")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoint-cost-") as name:
        folder = Path(name)
        chain = chain_of(options, folder, "data", NEVER)
        parent.run_stage("dataset", chain, log=folder / "dataset.log")
        seconds: dict[float, list[float]] = {NEVER: [], options.every: []}
        watches = []
        for number in range(options.rounds):
            # Each goes first in every other round, so that a machine that slows down favours neither.
            for every in (NEVER, options.every)[:: -1 if number % 2 else 1]:
                chain = chain_of(options, folder, f"round{number}-{every:g}", every)
                watch = Watch(run_of(chain).checkpoints)
                seconds[every].append(train(chain, folder, watch))
                if every != NEVER:
                    watches.append(watch)
        restart = [restart_seconds(options, folder, number) for number in range(2)]
    without, with_ = seconds.values()
    # The last one is the one that publishing writes, when the steps are over.
    count = sum(len(watch.names) - 1 for watch in watches)
    if count < 1:
        sys.exit("no checkpoint was due while training: more --epochs, or a smaller --every")
    each = (bench.median(with_) - bench.median(without)) * options.rounds / count
    writing = [each for watch in watches for each in watch.seconds]
    size = max(watch.size for watch in watches)
    rows = [
        ("parameters", f"{model.count_parameters(chain.config.architecture):,}"),
        ("one checkpoint on disk", human_size(size)),
        ("at most on disk (two, and one being written)", human_size(3 * size)),
        ("time to write one, during training", f"{bench.median(writing):.2f} s (median of {len(writing)})"),
        ("cost of one in training time", f"{each:.2f} s ({count} of them)"),
        (
            "trainings without and with them",
            " and ".join(f"{bench.median(s):.1f} s ({bench.spread(s, 1)})" for s in (without, with_)),
        ),
        ("share of training time at checkpoint_seconds: 60", f"{each / 60:.2%}"),
        ("from restart to the first new step", f"{bench.median(restart):.1f} s (median of {len(restart)})"),
    ]
    bench.table(f"checkpoints of {chain.config.architecture.name}, data: {options.data}", ("what", "measured"), rows)
    value = {
        "rows": dict(rows),
        "seconds_without": without,
        "seconds_with": with_,
        "every": options.every,
        "checkpoints": count,
        "cost_seconds": each,
        "share_at_60": each / 60,
        "size": size,
        "write_seconds": writing,
        "restart_seconds": restart,
    }
    bench.finish("checkpoint_cost", value)


def chain_of(options: argparse.Namespace, folder: Path, generation: str, every: float) -> Chain:
    """The configuration with this data, as a generation of its own so that each training starts from scratch."""
    value: dict[str, Any] = config.to_dict(config.load(options.config))
    name = "sample" if options.data == "bundled" else "cifar10"
    source = options.data if options.data == "bundled" else str(Path(options.data).absolute())
    value["data"] = {"name": name, "source": source}
    value["training"].update(epochs=options.epochs, checkpoint_seconds=every, schedule={"kind": "constant"})
    return Chain(Workspace(folder / "artifacts"), config.from_dict(value), generation)


def run_of(chain: Chain) -> Run:
    run = chain.run()
    assert run is not None
    return run


def train(chain: Chain, folder: Path, watch: Watch) -> float:
    """Train to the end; returns the seconds of all epochs (without start, validation and publishing)."""
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        result = parent.run_stage("train", chain, log=folder / "train.log")
    finally:
        watch.done = True
        thread.join()
    return result["details"]["seconds"]


class _Enough(Exception):
    """Raised during a training: its process then ends as if its parent had died."""


def restart_seconds(options: argparse.Namespace, folder: Path, number: int) -> float:
    """Kill a training after its first checkpoint and start it again; returns the seconds to its first new step."""
    chain = chain_of(options, folder, f"restart{number}", 1.0)
    run = run_of(chain)

    def until(enough: Callable[[], object]) -> float:
        """Seconds from the start of the process to the first progress event for which `enough` is true."""
        started = time.monotonic()
        moment = 0.0

        def on_event(event: dict[str, Any]) -> None:
            nonlocal moment
            if event["event"] == "progress" and enough():
                moment = time.monotonic()
                raise _Enough

        with contextlib.suppress(_Enough):
            parent.run_stage("train", chain, log=folder / f"restart{number}.log", on_event=on_event)
        assert moment, "the training ended too early"
        return moment - started

    until(lambda: list(run.checkpoints.glob("step-*.npz")))
    seconds = until(lambda: True)  # the first progress event comes after the first step
    assert "resumed from" in (folder / f"restart{number}.log").read_text()
    return seconds


if __name__ == "__main__":
    main()
