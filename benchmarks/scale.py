"""Growth: the cost of Compare, Status and one more run in a workspace of 1,000 finished runs (one tiny run, copied).

Measures a folder, S3 on loopback (moto's server behind a proxy that counts requests), and luigid's scheduling of the
same runs. Goal: a finished Compare over 1,000 runs takes 2 s in a folder, 5 s in S3.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench
import psutil

from pipeline.config import load, to_dict
from pipeline.files import write_json
from pipeline.workspace import RUN_STAGES, Workspace
from pipeline.workspace.freshness import Chain

sys.path[:0] = [str(bench.ROOT / "tests"), str(bench.ROOT / "tests" / "store")]

TRAINING = {"epochs": 1, "batch_size": 100, "validation_images": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="number of finished runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-s3", action="store_true", help="measure only the folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        configs = make_workspace(folder, options.runs)
        found = {"folder": measure(folder, str(folder / "artifacts"), configs, options.rounds, None)}
        if not options.no_s3:
            with store(folder) as proxy:
                objects = upload(folder / "artifacts", proxy.target)
                found[f"S3, {objects:,} objects"] = measure(folder, "s3://bench/team", configs, options.rounds, proxy)
        memory = luigid_memory(folder, options.runs)
    report(found, memory, options)


def make_workspace(folder: Path, runs: int) -> list[Path]:
    """Write configurations of `runs` + 1 architectures and a workspace where all but the last are finished."""
    (folder / "configs").mkdir()
    configs = []
    for number in range(runs + 1):
        conv_arch = [[1, 2 + number % 64], [1, 2 + number // 64]]
        architecture = {"name": f"a{number:05}", "conv_arch": conv_arch, "batch_norm": True, "dense": []}
        path = folder / ("configs" if number < runs else ".") / f"a{number:05}.yaml"
        value = {"data": bench.SAMPLE, "architecture": architecture, "training": TRAINING, "device": "cpu"}
        bench.write_config(path, value)
        configs.append(path)
    bench.luigi("Report", "--config", str(configs[0]), "--workspace", str(folder / "artifacts"))
    model = Chain(Workspace(folder / "artifacts"), load(configs[0])).run()
    assert model is not None
    for path in configs[1:-1]:
        copy_run(model.root, Chain(Workspace(folder / "artifacts"), load(path)))
    return configs


def copy_run(model: Path, chain: Chain) -> None:
    """Copy a finished run and rewrite its manifests for another architecture."""
    run = chain.run()
    assert run is not None
    shutil.copytree(model, run.root)
    for stage in RUN_STAGES:
        path = run.stage(stage) / "manifest.json"
        value = json.loads(path.read_text())
        value.pop("checksum", None)
        if stage == "train":
            value["inputs"]["architecture"] = chain.config.fingerprint
            value["details"]["config"] = to_dict(chain.config)
        write_json(path, value)
    assert chain.complete("report"), [chain.why(stage) for stage in RUN_STAGES]


@contextlib.contextmanager
def store(folder: Path) -> Iterator[Any]:
    from s3_server import Proxy, s3_server

    with s3_server(folder) as port:
        proxy = Proxy(port)
        yield proxy
        proxy.close()


def upload(workspace: Path, port: int) -> int:
    """Upload a workspace unchanged and return the number of objects."""
    from store_hosts import Bucket

    bucket = Bucket(port, "bench")
    folders = [workspace / name for name in ("datasets", "runs", "comparisons")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda path: bucket.write(path.relative_to(workspace).as_posix(), path.read_bytes()), files))
    return len(files)


def measure(folder: Path, workspace: str, configs: list[Path], rounds: int, proxy: Any) -> dict[str, Any]:
    """Measure seconds and number of requests of each command, in turns."""
    from s3_server import environment

    about = {**(environment(proxy.port) if proxy else {}), "XDG_CACHE_HOME": str(folder / "cache")}
    place = ("--workspace", workspace)
    compare = ("Compare", "--configs", str(folder / "configs" / "*.yaml"), *place)
    commands = {
        "finished Compare": compare,
        "Status of a finished run": ("Status", "--config", str(configs[0]), *place),
        "Status of a new run": ("Status", "--config", str(configs[-1]), *place),
        "finished Report": ("Report", "--config", str(configs[0]), *place),
    }
    found: dict[str, Any] = {}

    def run(name: str, arguments: tuple[str, ...]) -> None:
        if proxy:
            proxy.quiet()
        seconds = bench.luigi(*arguments, environment=about, allowed=(0, 3))  # 3: something would run
        entry = found.setdefault(name, {"seconds": [], "requests": []})
        entry["seconds"].append(seconds)
        entry["requests"].append(len(proxy.seen) if proxy else 0)

    run("finished Compare, a new host" if proxy else "Compare that writes the page", compare)
    for _ in range(rounds):
        for name, arguments in commands.items():
            run(name, arguments)
    run("one more run, all its stages", ("Report", "--config", str(configs[-1]), *place))
    empty = f"{workspace}-empty"
    run("the same in an empty workspace", ("Report", "--config", str(configs[-1]), "--workspace", empty))
    if not proxy:  # so that the store starts from the same state
        shutil.rmtree(empty)
        new = Chain(Workspace(Path(workspace)), load(configs[-1])).run()
        assert new is not None
        shutil.rmtree(new.root)
    return found


def luigid_memory(folder: Path, runs: int) -> dict[str, float]:
    """Return luigid's resident memory in MB without tasks and with those of a Compare over `runs` runs."""
    from luigi.rpc import RemoteScheduler
    from luigid_process import luigid

    with luigid(folder / "luigid") as central:
        process = psutil.Process(central.process.pid)
        before = process.memory_info().rss
        client: Any = RemoteScheduler(central.url)
        started = time.monotonic()
        for number in range(runs):
            train, evaluate = (f"{task}_{number:05}_{'0' * 40}" for task in ("TrainVGG", "Evaluate"))
            params = {"config": f"configs/a{number:05}.yaml", "workspace": "s3://bench/team", "generation": ""}
            for task_id, deps in ((train, []), (evaluate, [train])):
                about = {"family": task_id.partition("_")[0], "module": "tasks", "params": params, "deps": deps}
                client.add_task(worker="bench", task_id=task_id, status="PENDING", **about)
        seconds = time.monotonic() - started
        return {"empty": before / 1e6, "full": process.memory_info().rss / 1e6, "scheduling_seconds": seconds}


def report(found: dict[str, Any], memory: dict[str, float], options: argparse.Namespace) -> None:
    rows: list[tuple[Any, ...]] = [
        (where, name, f"{bench.median(entry['seconds']):.2f}", f"{max(entry['seconds']):.2f}", entry["requests"][-1])
        for where, entries in found.items()
        for name, entry in entries.items()
    ]
    tasks = f"{2 * options.runs:,} tasks"
    rows.append(("luigid", f"scheduling {tasks}", f"{memory['scheduling_seconds']:.2f}", "", 2 * options.runs))
    rows.append(("luigid", f"memory: none, {tasks}", f"{memory['empty']:.0f} MB", f"{memory['full']:.0f} MB", ""))
    title = f"{options.runs:,} finished runs; median of {options.rounds} where repeated"
    bench.table(title, ("where", "what", "seconds", "most", "requests"), rows)
    bench.finish("scale", {"runs": options.runs, "rounds": options.rounds, "measured": found, "luigid": memory})


if __name__ == "__main__":
    main()
