"""The cost of checkpoints: full-width VGG-11 (`config/vgg11.yaml`) in the real training process.

Trains in turns with a checkpoint every `--every` seconds and without; the difference of the medians per checkpoint is
the cost of one. Then kills a training and measures the time from restart to the first new step. About ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench

from pipeline import config, model
from pipeline.files import human_size
from pipeline.process import parent
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain

NEVER = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/vgg11.yaml")
    parser.add_argument("--data", default="bundled", help="CIFAR-10 archive; default: the bundled sample")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two checkpoints while measuring")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoint-cost-") as name:
        folder = Path(name)
        chain = chain_of(options, folder, "data", NEVER)
        parent.run_stage("dataset", chain, log=folder / "dataset.log")
        seconds: dict[float, list[float]] = {NEVER: [], options.every: []}
        sizes: list[int] = []
        for number in range(options.rounds):
            # Alternate which goes first, so that a machine that slows down favours neither.
            for every in (NEVER, options.every)[:: -1 if number % 2 else 1]:
                elapsed, written = train(chain_of(options, folder, f"round{number}-{every:g}", every), folder)
                seconds[every].append(elapsed)
                sizes += written
        restart = [restart_seconds(options, folder, number) for number in range(2)]
    if not sizes:
        sys.exit("no checkpoint was written during training: raise --epochs or lower --every")
    without, with_ = seconds.values()
    cost = (bench.median(with_) - bench.median(without)) * options.rounds / len(sizes)
    rows = [
        ("parameters", f"{model.count_parameters(chain.config.architecture):,}"),
        ("one checkpoint on disk", human_size(max(sizes))),
        ("at most on disk (two, and one being written)", human_size(3 * max(sizes))),
        ("cost of one in training time", f"{cost:.2f} s ({len(sizes)} of them)"),
        (
            "trainings without and with them",
            " and ".join(f"{bench.median(s):.1f} s ({bench.spread(s, 1)})" for s in (without, with_)),
        ),
        ("share of training time at checkpoint_seconds: 60", f"{cost / 60:.2%}"),
        ("from restart to the first new step", f"{bench.median(restart):.1f} s (median of {len(restart)})"),
    ]
    bench.table(f"checkpoints of {chain.config.architecture.name}, data: {options.data}", ("what", "measured"), rows)
    value = {"rows": dict(rows), "seconds_without": without, "seconds_with": with_, "restart_seconds": restart}
    bench.finish("checkpoint_cost", {**value, "every": options.every, "sizes": sizes})


def chain_of(options: argparse.Namespace, folder: Path, generation: str, every: float) -> Chain:
    """Build the chain as its own generation, so that each training starts from scratch."""
    value: dict[str, Any] = config.to_dict(config.load(options.config))
    name = "sample" if options.data == "bundled" else "cifar10"
    source = options.data if options.data == "bundled" else str(Path(options.data).absolute())
    value["data"] = {"name": name, "source": source}
    value["training"].update(epochs=options.epochs, checkpoint_seconds=every, schedule={"kind": "constant"})
    return Chain(Workspace(folder / "artifacts"), config.from_dict(value), generation)


def train(chain: Chain, folder: Path) -> tuple[float, list[int]]:
    """Return the seconds of all epochs (without start, validation, publishing) and the checkpoint sizes in bytes."""
    sizes: dict[str, int] = {}

    def record_sizes(event: dict[str, Any]) -> None:
        """Catches every checkpoint: two are kept, so each outlives the wait for the next event."""
        with contextlib.suppress(FileNotFoundError):
            sizes.update((path.name, path.stat().st_size) for path in checkpoints(chain))

    details = parent.run_stage("train", chain, log=folder / "train.log", on_event=record_sizes)["details"]
    # Leave out the checkpoint of the last step: publishing writes it after the epochs.
    return details["seconds"], [size for name, size in sizes.items() if int(name[5:-4]) < details["steps"]]


def checkpoints(chain: Chain) -> list[Path]:
    run = chain.run()
    assert run is not None
    return list(run.checkpoints.glob("step-*.npz"))


class _Enough(Exception):
    """Raised during a training to end its process as if the parent had died."""


def restart_seconds(options: argparse.Namespace, folder: Path, number: int) -> float:
    """Kill a training after its first checkpoint, restart it, and return the seconds to its first new step."""
    chain, log = chain_of(options, folder, f"restart{number}", 1.0), folder / f"restart{number}.log"

    def until(enough: Callable[[], object]) -> float:
        """Return the seconds from process start to the first progress event for which `enough` is true."""
        started = time.monotonic()

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "progress" and enough():
                raise _Enough(time.monotonic())

        try:
            parent.run_stage("train", chain, log=log, on_event=on_event)
        except _Enough as reached:
            return reached.args[0] - started
        sys.exit("the training ended too early: raise --epochs")

    until(lambda: checkpoints(chain))
    seconds = until(lambda: True)  # the first progress event comes after the first step
    assert "resumed from" in log.read_text()
    return seconds


if __name__ == "__main__":
    main()
