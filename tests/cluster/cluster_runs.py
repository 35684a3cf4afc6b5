"""Helpers of the cluster tests: a small chain, luigi in the background, a real Slurm."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from luigi_runs import Running, SmallChain, clean_environment, luigi_command

from pipeline.training import checkpoint

#: Seconds to wait for anything. Generous, because the machine may be busy.
LIMIT = 120.0

#: Without dropout and batch norm, so that one worker and several can be compared.
CONFIG = {
    "architecture": {"name": "tiny", "conv_arch": [[1, 4], [1, 8]], "dense": [], "dropout": 0},
    "training": {"epochs": 40, "batch_size": 40, "learning_rate": 0.05, "validation_images": 40, "normalize": True},
    "device": "cpu",
}


def eventually(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Wait until `condition` returns something true, and return it; fail with `what` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {limit:.0f} s: {what}"
        time.sleep(0.05)
    return value


def weights(chain: SmallChain) -> str:
    """SHA-256 of the trained weights."""
    return hashlib.sha256((chain.folder("train") / "model.params").read_bytes()).hexdigest()


class Luigi(Running):
    """`luigi --module tasks TrainVGG` in the background."""

    def __init__(self, chain: SmallChain, *arguments: str, **environment: str) -> None:
        about = ["--workspace", str(chain.workspace), "--config", str(chain.config), "--local-scheduler"]
        command = [*luigi_command(), "--module", "tasks", "TrainVGG", *about, *arguments]
        super().__init__(command, chain.cwd, clean_environment(**environment), chain.root)

    def wait_for_output(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches `pattern`; fail if the command exits first."""
        return self.wait_for(lambda: re.search(pattern, self.output), f"it says {pattern!r}")


def start(chain: SmallChain) -> Luigi:
    """Start the training with the marker that `roles` looks for."""
    return Luigi(chain, CLUSTER_TEST=str(chain.workspace))


def roles(chain: SmallChain) -> dict[str, int]:
    """The processes of the training: `supervisor`, `scheduler`, `server`, `worker 0` …"""
    found: dict[str, int] = {}
    modules = {"pipeline.training", "pipeline.training.parameter_server"}
    for process in psutil.process_iter(["cmdline"]):
        if not modules & set(process.info["cmdline"] or ()):
            continue
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("CLUSTER_TEST") != str(chain.workspace):
                continue
            role = environment.get("DMLC_ROLE", "supervisor")
            found[f"worker {environment['DMLC_WORKER_ID']}" if role == "worker" else role] = process.pid
    return found


def listening(process: int) -> list[str]:
    """TCP ports and Unix socket paths on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    tcp = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    ports = [str(int(line[1].partition(":")[2], 16)) for line in tcp if line[3] == "0A" and line[9] in inodes]
    return ports + [line[7] for line in unix if len(line) > 7 and line[5] == "01" and line[6] in inodes]


def checkpoints(chain: SmallChain) -> list[Path]:
    """The checkpoints of the unfinished training, newest first."""
    run = chain.chain().run()
    assert run is not None
    return checkpoint.paths(run.checkpoints)


def new_checkpoint(chain: SmallChain, luigi: Luigi, before: list[Path]) -> None:
    """Wait for a checkpoint that is not in `before`."""

    def written() -> bool:
        assert luigi.process.poll() is None, luigi.output
        return bool(checkpoints(chain)) and checkpoints(chain)[0] not in before

    eventually(written, "a new checkpoint")


class Slurm:
    """A real Slurm with three nodes on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def squeue(self) -> list[str]:
        """One line per pending, running or completing job: its number and state."""
        return self._run("squeue", "--noheader", "--format=%i %T").splitlines()

    def wait_until_empty(self) -> None:
        """Wait until no job is left."""
        eventually(lambda: not self.squeue(), "no job is left")

    def cancel(self, job: str, *options: str) -> None:
        self._run("scancel", *options, job)

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Occupy all nodes with another job."""
        command = ["srun", "--nodes=3", "--ntasks=3", "--exclusive", "sleep", "3600"]
        other = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: any(line.endswith("RUNNING") for line in self.squeue()), "the nodes are occupied")
            yield
        finally:
            other.terminate()
            other.wait(timeout=LIMIT)

    def kill_node(self, name: str) -> None:
        """Simulate a power failure: kill all processes of the node without notice."""
        wanted = {"SLURMD_NODENAME": name, "SLURM_CONF": os.environ["SLURM_CONF"]}.items()
        tasks = [task for task in psutil.process_iter(["environ"]) if wanted <= (task.info["environ"] or {}).items()]
        os.kill(self._slurmd(name), signal.SIGKILL)
        for task in tasks:
            with contextlib.suppress(psutil.NoSuchProcess):
                step = task.parent()
                if step and "slurmstepd" in " ".join(step.cmdline()):
                    step.kill()
            with contextlib.suppress(psutil.NoSuchProcess):
                task.kill()

    def start_node(self, name: str) -> None:
        """Bring the node back."""
        eventually(lambda: not self._alive(name), f"{name} is gone")
        self._run("slurmd", "-f", os.environ["SLURM_CONF"], "-N", name)

    def wait_until_ready(self) -> None:
        """Wait until no job is left and all nodes are idle."""
        eventually(lambda: not self.squeue() and self._idle() == 3, "no job is left and three nodes are idle")

    def _idle(self) -> int:
        return int(self._run("sinfo", "--noheader", "--states=idle", "--format=%D").strip() or 0)

    def _alive(self, name: str) -> bool:
        return Path(f"/proc/{self._slurmd(name)}").exists()

    def _slurmd(self, name: str) -> int:
        return int((self.folder / f"slurmd.{name}.pid").read_text())

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


@contextlib.contextmanager
def own_slurm(start: str, folder: Path) -> Iterator[str]:
    """Start a Slurm with three nodes with the script `start`; yields its SLURM_CONF."""
    munged = Path("/run/munge/munged.pid")
    had_munged = munged.exists()
    done = subprocess.run(
        [start, str(folder)],
        env={**os.environ, "NODES": "3"},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=600,
        text=True,
        check=True,
    )
    try:
        yield done.stdout.strip().rpartition("SLURM_CONF=")[2]
    finally:
        for file in [*folder.glob("slurmd.*.pid"), folder / "slurmctld.pid", *([] if had_munged else [munged])]:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)
