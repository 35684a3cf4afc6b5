"""Eight trainings on three Slurm nodes under one luigid, with six kills: two workers, two jobs, two nodes.

Three `luigi` commands share one `Compare`; a command that ends without a finished page is started again, as cron would.
Expected: every run finishes once, with the weights of an undisturbed training, one page, no job left. SLURM_CONF must
name a Slurm of three nodes on this machine; this program kills parts of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import bench

from pipeline.files import read_json

sys.path[:0] = [str(bench.ROOT / "tests"), str(bench.ROOT / "tests" / "cluster")]

import cluster_runs  # noqa: E402 (needs the path above)
from luigi_runs import clean_environment, luigi_command  # noqa: E402
from luigid_process import luigid  # noqa: E402

SRUN = ["srun", "--job-name=vgg", "--ntasks=1", "--cpus-per-task=1", "--exclusive"]
KILLS = ("worker", "job", "node")

#: Seconds to wait for a training to kill; a dead node alone takes about two minutes to be noticed.
LIMIT = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    if "SLURM_CONF" not in os.environ:
        sys.exit("SLURM_CONF is not set: start a Slurm of three nodes, or source its environment")
    slurm = cluster_runs.Slurm(Path(os.environ["SLURM_CONF"]).parent)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        undisturbed = train_here(folder, options)
        with luigid(folder / "luigid") as central:
            started = time.monotonic()
            workers = [Worker(folder, central.port, number) for number in range(3)]
            try:
                kills = kill_at_random(workers, slurm, options.kills)
                for worker in workers:
                    worker.join()
            finally:
                for worker in workers:
                    worker.end()
            seconds = time.monotonic() - started
        report(folder, undisturbed, kills, workers, slurm, seconds, options)


def write_configs(folder: Path, options: argparse.Namespace, launcher: list[str]) -> None:
    folder.mkdir()
    for number in range(options.runs):
        value = {
            "data": bench.SAMPLE,
            "architecture": {
                "name": f"w{number}",
                "conv_arch": [[1, 8 + number], [1, 16], [1, 16]],
                "batch_norm": True,
                "dense": [],
            },
            "training": {"epochs": options.epochs, "batch_size": 64, "checkpoint_seconds": 1},
            "device": "cpu",
            "launcher": launcher,
        }
        bench.write_config(folder / f"w{number}.yaml", value)


def train_here(folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Train every run undisturbed and without a launcher; returns the SHA-256 of the weights of each."""
    write_configs(folder / "plain", options, [])
    write_configs(folder / "configs", options, SRUN)
    about = ("--configs", str(folder / "plain" / "*.yaml"), "--workspace", str(folder / "undisturbed"))
    bench.luigi("Compare", *about, environment={"OMP_NUM_THREADS": "1"})
    return digests(folder / "undisturbed")


def digests(workspace: Path) -> dict[str, str]:
    """Run -> SHA-256 of its weights, from its manifest."""
    found = {}
    for path in workspace.glob("runs/*/*/train/manifest.json"):
        found[path.parts[-3]] = read_json(path)["files"]["model.params"]["sha256"]  # type: ignore[index]
    return found


class Worker(threading.Thread):
    """One `luigi` command on the comparison, started again until it succeeds."""

    def __init__(self, folder: Path, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.port, self.number = folder, port, number
        self.process: subprocess.Popen[bytes] | None = None
        self.codes: list[int] = []
        self.ended = False
        self.output = folder / f"worker{number}.txt"
        self.start()

    def run(self) -> None:
        command = [*luigi_command(), "--module", "tasks", "Compare", "--configs", str(self.folder / "configs/*.yaml")]
        command += ["--workspace", str(self.folder / "artifacts"), "--scheduler-port", str(self.port)]
        # Without keep-alive: the next command retries what failed, not luigid after its retry-delay (15 minutes).
        command += ["--scheduler-host", "127.0.0.1"]
        while not self.ended and (not self.codes or self.codes[-1] != 0):
            with open(self.output, "wb") as file:
                self.process = subprocess.Popen(
                    command, stdout=file, stderr=file, env=clean_environment(), cwd=self.folder, start_new_session=True
                )
            self.codes.append(self.process.wait())
            time.sleep(2)

    def end(self) -> None:
        """Stop the command, which writes a checkpoint first."""
        self.ended = True
        while self.is_alive():
            if self.process and self.process.poll() is None:
                self.process.terminate()
            self.join(1)

    def training(self) -> tuple[str, str] | None:
        """Node and job of this worker's current training, past its second epoch."""
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        starts = list(re.finditer(r"started on (\w+) \(Slurm job (\d+)\)", text))
        if not starts or not re.search(r"epoch [23]/", text[starts[-1].end() :]):
            return None
        return starts[-1][1], starts[-1][2]


def kill_at_random(workers: list[Worker], slurm: Any, count: int) -> list[str]:
    """Kill `count` times, each in the middle of a training not killed before; returns what was killed."""
    done: list[str] = []
    seen, chance = set(), random.Random(0)
    for number in range(count):
        deadline = time.monotonic() + LIMIT
        while True:
            running = {line.split()[0] for line in slurm.squeue() if line.endswith("RUNNING")}
            found = [(worker, worker.training()) for worker in workers]
            ready = [(w, t) for w, t in found if t and t[1] in running and t[1] not in seen and w.process]
            if ready:
                break
            if time.monotonic() > deadline or not any(worker.is_alive() for worker in workers):
                return done
            time.sleep(0.2)
        worker, about = chance.choice(ready)
        assert about
        assert worker.process
        node, job = about
        seen.add(job)
        kind = KILLS[number % len(KILLS)]
        if kind == "worker":
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid, 9)
        elif kind == "job":
            slurm.cancel(job, "--signal=KILL")
        else:
            slurm.kill_node(node)
            threading.Timer(10, slurm.start_node, [node]).start()
        done.append(kind)
        print(f"kill {number + 1}: {kind} (job {job} on {node})", flush=True)
    return done


def report(
    folder: Path,
    undisturbed: dict[str, str],
    kills: list[str],
    workers: list[Worker],
    slurm: Any,
    seconds: float,
    options: argparse.Namespace,
) -> None:
    workspace = folder / "artifacts"
    trained = digests(workspace)
    lines = (workspace / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    finished = Counter(e["run"] for e in events if (e["event"], e["stage"]) == ("finished", "train"))
    details = [read_json(path)["details"] for path in workspace.glob("runs/*/*/train/manifest.json")]  # type: ignore[index]
    pages = list(workspace.glob("comparisons/*/manifest.json"))
    identical = sum(trained.get(run) == digest for run, digest in undisturbed.items())
    facts = {
        "kills": ", ".join(f"{number} {kind}" for kind, number in Counter(kills).items()),
        "runs finished": f"{len(trained)} of {options.runs}",
        "finished more than once": sum(number > 1 for number in finished.values()),
        "weights identical to undisturbed": f"{identical} of {options.runs}",
        "trainings resumed from a checkpoint": sum(one["resumed"] > 0 for one in details),
        "reported as bit-reproducible": sum(one["exact"] for one in details),
        "pages": len(pages),
        "jobs left": len(slurm.squeue()),
        "luigi commands, by exit status": dict(Counter(code for worker in workers for code in worker.codes)),
        "seconds": f"{seconds:.0f}",
    }
    bench.table(f"{options.runs} trainings, 3 nodes, 3 workers", ("what", "found"), list(facts.items()))
    bench.finish("cluster", {"facts": facts, "kills": kills})
    if identical != options.runs or len(kills) != options.kills or len(pages) != 1:
        sys.exit("not every run has the weights of an undisturbed one")


if __name__ == "__main__":
    main()
