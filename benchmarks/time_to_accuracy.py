"""Time to an accuracy: the whole command from archive to report, its training, and each stage, over several seeds.

Every seed starts from nothing, so each run downloads or unpacks, trains, evaluates, exports and reports. Accuracy is
measured on the test images once, after the last epoch. Seconds of CPU (user and system, of all processes) tell what
the work costs also on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench

from pipeline import config as configuration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(bench.ROOT / "config" / "vgg11-fast.yaml"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target", type=float, default=0.7405)
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        runs.append(one(options.config, seed))
        print(json.dumps(runs[-1]), flush=True)
    report(options, runs)


def one(config: str, seed: int) -> dict[str, Any]:
    """Run the chain once in a workspace of its own."""
    value = configuration.to_dict(configuration.load(config))
    value["training"]["seed"] = seed
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        path = bench.write_config(folder / "bench.yaml", value)
        cpu = cpu_seconds()
        seconds = bench.luigi("Report", "--config", str(path), "--workspace", str(folder / "artifacts"))
        cpu = cpu_seconds() - cpu
        events = [json.loads(line) for line in (folder / "artifacts" / "events.jsonl").read_text().splitlines()]
        trained = bench.read_manifest(folder / "artifacts", "train")["details"]
        (metrics,) = folder.glob("artifacts/runs/*/*/evaluate/metrics.json")
        return {
            "seed": seed,
            "accuracy": json.loads(metrics.read_text())["accuracy"],
            "training_seconds": trained["seconds"],
            "command_seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "stage_seconds": {event["stage"]: event["seconds"] for event in events if event["event"] == "finished"},
            "epochs": trained["epochs"],
            "precision": trained["precision"],
            "data": trained["dataset"]["label"],
        }
    finally:
        shutil.rmtree(folder)


def cpu_seconds() -> float:
    """Of all processes that have ended so far, those of the stages included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parts(run: dict[str, Any]) -> dict[str, float]:
    """The seconds of the whole command, by what they went into."""
    epochs, stages = run["training_seconds"], run["stage_seconds"]
    found = {
        "Luigi, before, between and after the stages": run["command_seconds"] - sum(stages.values()),
        **{stage if stage != "train" else "train, without its epochs": seconds for stage, seconds in stages.items()},
        "archive to report, without the epochs": run["command_seconds"] - epochs,
        "archive to report": run["command_seconds"],
        "CPU, all processes": run["cpu_seconds"],
    }
    found["train, without its epochs"] -= epochs
    return found


def report(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    rows = [(r["seed"], f"{r['accuracy']:.2%}", r["training_seconds"], r["command_seconds"]) for r in runs]
    middle = [bench.median([r[key] for r in runs]) for key in ("accuracy", "training_seconds", "command_seconds")]
    rows.append(("median", f"{middle[0]:.2%}", round(middle[1], 2), round(middle[2], 2)))
    reached = sum(r["accuracy"] >= options.target for r in runs)
    source = os.environ.get("CIFAR10_SOURCE", "the configured source")
    title = f"{Path(options.config).name}, {runs[0]['data']} ({Path(source).name}), {runs[0]['epochs']} epochs"
    bench.table(title, ("seed", "test accuracy", "training, s", "whole command, s"), rows)
    columns = [(name, [parts(run)[name] for run in runs]) for name in parts(runs[0])]
    shown = [(name, f"{bench.median(values):.2f}", bench.spread(values)) for name, values in columns]
    bench.table(f"seconds by stage, median of {len(runs)}", ("what", "seconds", "range"), shown)
    print(f"{reached} of {len(runs)} seeds reach {options.target:.2%}")
    bench.finish("time_to_accuracy", {"config": options.config, "target": options.target, "runs": runs})
    sys.exit(reached < len(runs))


if __name__ == "__main__":
    main()
