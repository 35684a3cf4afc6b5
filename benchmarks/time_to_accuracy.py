"""Time to accuracy over several seeds: the whole command from archive to report, its training, and each stage.

Every seed starts from an empty workspace. Accuracy is measured on the test images once, after the last epoch. CPU time
(user and system, all processes) is meaningful even on a busy machine. plot_accuracy.py draws what `--record` writes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench

from pipeline import config as configuration

#: Latest measurement of each ready-made configuration; committed.
ACCURACY = Path(__file__).with_name("accuracy.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(bench.ROOT / "config" / "vgg11-fast.yaml"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target", type=float, default=0.7405)
    parser.add_argument("--record", action="store_true", help="write the medians to accuracy.json")
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        runs.append(run_chain(options.config, seed))
        print(json.dumps(runs[-1]), flush=True)
    if options.record:
        record(Path(options.config).stem, runs)
    report(options, runs)


def run_chain(config: str, seed: int) -> dict[str, Any]:
    """Run the chain once in its own workspace."""
    value = configuration.to_dict(configuration.load(config))
    value["training"]["seed"] = seed
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        path = bench.write_config(folder / "bench.yaml", value)
        cpu = bench.cpu_seconds()
        seconds = bench.luigi("Report", "--config", str(path), "--workspace", str(folder / "artifacts"))
        cpu = bench.cpu_seconds() - cpu
        events = [json.loads(line) for line in (folder / "artifacts" / "events.jsonl").read_text().splitlines()]
        trained = bench.read_manifest(folder / "artifacts", "train")["details"]
        (path,) = folder.glob("artifacts/runs/*/*/evaluate/metrics.json")
        metrics = json.loads(path.read_text())
        return {
            "seed": seed,
            "accuracy": metrics["accuracy"],
            "single_view_accuracy": metrics["single_view_accuracy"],
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


def record(name: str, runs: list[dict[str, Any]]) -> None:
    """Write the medians of these runs to accuracy.json, replacing those of the same configuration."""
    measured = json.loads(ACCURACY.read_text())
    about = bench.machine()
    measured[name] = {
        **{key: bench.median([run[key] for run in runs]) for key in ("accuracy", "single_view_accuracy")},
        "minutes": round(bench.median([run["command_seconds"] for run in runs]) / 60, 2),
        "runs": len(runs),
        "cpu": f"{about['cpu']} ({about['instructions'][-1]})",
    }
    ACCURACY.write_text(json.dumps(dict(sorted(measured.items())), indent=2) + "\n")


def breakdown(run: dict[str, Any]) -> dict[str, float]:
    epochs, stages = run["training_seconds"], run["stage_seconds"]
    seconds_by_part = {
        "Luigi, before, between and after the stages": run["command_seconds"] - sum(stages.values()),
        **{stage if stage != "train" else "train, without its epochs": seconds for stage, seconds in stages.items()},
        "archive to report, without the epochs": run["command_seconds"] - epochs,
        "archive to report": run["command_seconds"],
        "CPU, all processes": run["cpu_seconds"],
    }
    seconds_by_part["train, without its epochs"] -= epochs
    return seconds_by_part


def report(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    keys = ("accuracy", "single_view_accuracy", "training_seconds", "command_seconds")
    medians = {key: bench.median([run[key] for run in runs]) for key in keys}
    rows = [
        (run["seed"], *(f"{run[key]:.2%}" for key in keys[:2]), *(f"{run[key]:.2f}" for key in keys[2:]))
        for run in [*runs, {"seed": "median", **medians}]
    ]
    reached = sum(r["accuracy"] >= options.target for r in runs)
    source = os.environ.get("CIFAR10_SOURCE", "the configured source")
    title = f"{Path(options.config).name}, {runs[0]['data']} ({Path(source).name}), {runs[0]['epochs']} epochs"
    bench.table(title, ("seed", "test accuracy", "from one view", "training, s", "whole command, s"), rows)
    columns = [(name, [breakdown(run)[name] for run in runs]) for name in breakdown(runs[0])]
    shown = [(name, f"{bench.median(values):.2f}", bench.spread(values)) for name, values in columns]
    bench.table(f"seconds by stage, median of {len(runs)}", ("what", "seconds", "range"), shown)
    print(f"{reached} of {len(runs)} seeds reach {options.target:.2%}")
    bench.finish("time_to_accuracy", {"config": options.config, "target": options.target, "runs": runs})
    sys.exit(reached < len(runs))


if __name__ == "__main__":
    main()
