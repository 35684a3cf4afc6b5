"""Rerun of a finished chain of four stages: this plugin, DVC, Snakemake and gokart.

Each pipeline is data -> train -> evaluate -> report, stages that write small files. The tools run in turns; those that
`--python` lacks are skipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bench

STAGES = ("data", "train", "evaluate", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python that has dvc, snakemake and gokart")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        candidates = {"this plugin": this_plugin(folder / "plugin")}
        tools = Path(options.python).parent
        for tool, prepare in (("dvc", dvc), ("snakemake", snakemake), ("gokart", gokart)):
            if subprocess.run([options.python, "-c", f"import {tool}"], capture_output=True).returncode == 0:
                candidates[tool] = prepare(folder / tool, tools)
        seconds: dict[str, list[float]] = {tool: [] for tool in candidates}
        for run in candidates.values():
            run()  # the first run does the work
        for _ in range(options.rounds):
            for tool, run in candidates.items():
                seconds[tool].append(run())
    rows = [(tool, f"{bench.median(values):.2f}", bench.spread(values)) for tool, values in seconds.items()]
    title = f"rerun of a finished chain, median of {options.rounds}"
    bench.table(title, ("what", "seconds", "range"), rows)
    bench.finish("noop", {"seconds": seconds})


def this_plugin(folder: Path) -> Callable[[], float]:
    folder.mkdir()
    config = {
        "data": bench.SAMPLE,
        "architecture": {"name": "tiny", "conv_arch": [[1, 4], [1, 8]], "batch_norm": True, "dense": []},
        "training": {"epochs": 1},
    }
    path = bench.write_config(folder / "tiny.yaml", config)
    return lambda: bench.luigi("Report", "--config", str(path), "--workspace", str(folder / "artifacts"))


def dvc(folder: Path, tools: Path) -> Callable[[], float]:
    stages = {}
    for number, stage in enumerate(STAGES):
        before = [f"{STAGES[number - 1]}.txt"] if number else []
        command = f"echo {stage} > {stage}.txt"
        stages[stage] = {"cmd": command, "outs": [f"{stage}.txt"], **({"deps": before} if before else {})}
    folder.mkdir()
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    subprocess.run([tools / "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return lambda: bench.timed([tools / "dvc", "repro", "-q"], {"DVC_NO_ANALYTICS": "1"}, folder)


def snakemake(folder: Path, tools: Path) -> Callable[[], float]:
    folder.mkdir()
    lines = ["rule all:", "    input: 'report.txt'"]
    for number, stage in enumerate(STAGES):
        lines.append(f"rule {stage}:")
        if number:
            lines.append(f"    input: '{STAGES[number - 1]}.txt'")
        lines += [f"    output: '{stage}.txt'", f"    shell: 'echo {stage} > {stage}.txt'"]
    (folder / "Snakefile").write_text("\n".join(lines) + "\n")
    return lambda: bench.timed([tools / "snakemake", "--cores", "1", "--quiet", "all"], folder=folder)


def gokart(folder: Path, tools: Path) -> Callable[[], float]:
    folder.mkdir()
    lines = ["import gokart, luigi"]
    for number, stage in enumerate(STAGES):
        lines.append(f"class {stage.title()}(gokart.TaskOnKart):")
        if number:
            lines += ["    def requires(self):", f"        return {STAGES[number - 1].title()}()"]
        lines += ["    def run(self):", f"        self.dump({stage!r})"]
    lines += ["if __name__ == '__main__':", "    gokart.run()"]
    (folder / "chain.py").write_text("\n".join(lines) + "\n")
    return lambda: bench.timed([tools / "python", "chain.py", "Report", "--local-scheduler"], folder=folder)


if __name__ == "__main__":
    main()
