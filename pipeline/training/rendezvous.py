"""Where the processes of a distributed training run, and how they find each other."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import ConfigError, Interrupted, StageFailed
from pipeline.process import child
from pipeline.process.liveness import node_name
from pipeline.process.reporter import Reporter

#: Folder where ps-lite creates its sockets with DMLC_LOCAL.
SOCKETS = Path("/tmp")

#: How long the tasks of an `srun` wait for the first one, which may first have to wait for its lock.
RENDEZVOUS_SECONDS = child.LOCK_SECONDS + 120.0


@dataclass(frozen=True)
class Placement:
    """The ranks of this supervisor's workers, and the number of supervisors."""

    ranks: tuple[int, ...]
    supervisors: int = 1

    @property
    def is_leader(self) -> bool:
        return 0 in self.ranks


def find_placement(config: Config, launched: bool) -> Placement:
    """Find this process's workers, from Slurm if `launched`. Raises `ConfigError` if tasks and workers do not match."""
    workers = config.distributed.workers
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if launched else 1
    if tasks == 1:
        return Placement(tuple(range(workers)))
    if tasks != workers:
        raise ConfigError(
            f"distributed.workers: found {workers}, but the launcher started {tasks} tasks: "
            f"use srun --ntasks={workers}, or --ntasks=1 for all of them on one host"
        )
    return Placement((int(os.environ["SLURM_PROCID"]),), tasks)


def rendezvous(reporter: Reporter, placement: Placement) -> tuple[str, int] | None:
    """Agree on the scheduler's address and port, chosen by the leader; None if the training is already finished."""
    if placement.supervisors == 1:
        return "127.0.0.1", free_port("127.0.0.1")
    if placement.is_leader:
        host = own_address(os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        reporter.send("broadcast", line=json.dumps({"scheduler": host, "port": free_port("")}))
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while time.monotonic() < deadline:
        if reporter.stopping:
            raise Interrupted("stopped before the training started; run the same command again")
        with contextlib.suppress(queue.Empty):
            received = json.loads(reporter.broadcasts.get(timeout=0.2))
            return None if "finished" in received else (received["scheduler"], received["port"])
    raise StageFailed(
        f"distributed training: received nothing from task 0 for {RENDEZVOUS_SECONDS:.0f} s; the launcher must "
        "pass standard input to all tasks, as srun does by default"
    )


def announce_finished(reporter: Reporter, placement: Placement) -> None:
    """Tell the other supervisors that the training is already finished."""
    if placement.supervisors > 1:
        reporter.send("broadcast", line=json.dumps({"finished": True}))


def own_address(other: str) -> str:
    """The address at which `other` reaches this host. DMLC_NODE_HOST overrides it."""
    if "DMLC_NODE_HOST" in os.environ:
        return os.environ["DMLC_NODE_HOST"]
    address = "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):  # no route
        probe.connect((other, 9))  # sends nothing
        address = probe.getsockname()[0]
    if not address.startswith("127.") or int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) == 1:
        return address
    with contextlib.suppress(OSError):  # the first task runs where srun was started: its host name is reachable
        return socket.gethostbyname(node_name())
    return address


def free_port(host: str) -> int:
    """A port that is free, also as the name of a ps-lite socket. Raises `StageFailed` if there is none."""
    for _ in range(1000):
        with socket.socket() as listener:
            listener.bind((host, 0))
            port = int(listener.getsockname()[1])
        if not (SOCKETS / str(port)).exists():  # another training's socket
            return port
    raise StageFailed(f"{SOCKETS}: no free port; remove the files named after ports, except those of running trainings")
