"""A finished chain of four stages, called again: ours against DVC, Snakemake and gokart.

Each tool gets its own finished pipeline (data -> train -> evaluate -> report, stages that write small files) and is
called again in turns. `--python` names an environment that has dvc, snakemake and gokart; what it lacks is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
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
        contestants = {"this plugin": ours(folder / "ours")}
        tools = Path(options.python).parent
        for tool, prepare in (("dvc", dvc), ("snakemake", snakemake), ("gokart", gokart)):
            if subprocess.run([options.python, "-c", f"import {tool}"], capture_output=True).returncode == 0:
                contestants[tool] = prepare(folder / tool, tools)
        seconds: dict[str, list[float]] = {tool: [] for tool in contestants}
        for run in contestants.values():
            run()  # makes what is missing
        for _ in range(options.rounds):
            for tool, run in contestants.items():
                seconds[tool].append(run())
    rows = [
        (tool, f"{bench.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}")
        for tool, values in seconds.items()
    ]
    title = f"a finished chain called again, median of {options.rounds}"
    bench.table(title, ("what", "seconds", "range"), rows)
    bench.finish("noop", {"seconds": seconds})


def ours(folder: Path):
    folder.mkdir()
    config = {
        "data": {"name": "sample", "source": "bundled"},
        "architecture": {"name": "tiny", "conv_arch": [[1, 4], [1, 8]], "batch_norm": True, "dense": []},
        "training": {"epochs": 1},
    }
    (folder / "tiny.yaml").write_text(json.dumps(config))
    arguments = ("Report", "--config", str(folder / "tiny.yaml"), "--workspace", str(folder / "artifacts"))
    return lambda: bench.luigi(*arguments)[0]


def dvc(folder: Path, tools: Path):
    stages = {}
    for number, stage in enumerate(STAGES):
        before = [f"{STAGES[number - 1]}.txt"] if number else []
        command = f"echo {stage} > {stage}.txt"
        stages[stage] = {"cmd": command, "outs": [f"{stage}.txt"], **({"deps": before} if before else {})}
    folder.mkdir()
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    subprocess.run([tools / "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return lambda: timed([tools / "dvc", "repro", "-q"], folder)


def snakemake(folder: Path, tools: Path):
    folder.mkdir()
    lines = ["rule all:", "    input: 'report.txt'"]
    for number, stage in enumerate(STAGES):
        lines.append(f"rule {stage}:")
        if number:
            lines.append(f"    input: '{STAGES[number - 1]}.txt'")
        lines += [f"    output: '{stage}.txt'", f"    shell: 'echo {stage} > {stage}.txt'"]
    (folder / "Snakefile").write_text("\n".join(lines) + "\n")
    return lambda: timed([tools / "snakemake", "--cores", "1", "--quiet", "all"], folder)


def gokart(folder: Path, tools: Path):
    folder.mkdir()
    lines = ["import gokart, luigi"]
    for number, stage in enumerate(STAGES):
        lines.append(f"class {stage.title()}(gokart.TaskOnKart):")
        if number:
            lines += ["    def requires(self):", f"        return {STAGES[number - 1].title()}()"]
        lines += ["    def run(self):", f"        self.dump({stage!r})"]
    lines += ["if __name__ == '__main__':", "    gokart.run()"]
    (folder / "chain.py").write_text("\n".join(lines) + "\n")
    return lambda: timed([tools / "python", "chain.py", "Report", "--local-scheduler"], folder)


def timed(command: list, folder: Path) -> float:
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"}
    )
    seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return seconds


if __name__ == "__main__":
    main()
