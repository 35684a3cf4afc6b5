"""Distributed training: start and supervise the processes of one training on one or several hosts.

MXNet's `dist_sync` has a scheduler, servers and workers. The stage's process supervises those of its host: it starts
them, relays the leader's (worker 0's) events and commands, and kills all of them as soon as one dies or stops sending
heartbeats; with ps-lite alone, the others would wait for ever (apache/mxnet issues 15923, 4887, 6063). Under `srun`
with one task per worker, each task supervises its own worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.errors import StageFailed
from pipeline.process import child, liveness, pipes
from pipeline.process.cores import thread_environment, usable_cores
from pipeline.process.launcher import clean_environment
from pipeline.process.parent import module_command
from pipeline.process.reporter import COMMANDS, FINISHING, Reporter
from pipeline.training.rendezvous import SOCKETS, Placement, free_port, own_address, rendezvous
from pipeline.workspace.freshness import Chain

#: Interval of the heartbeats, and the silence after which a process counts as hanging.
HEARTBEAT_SECONDS, HEARTBEAT_TIMEOUT = 2.0, 30.0

#: A worker also hangs if it makes no progress for this long, or for ten times its longest step if that is longer.
STALLED_SECONDS = 45.0

#: The same before its first step, when it loads MXNet and the data set, and may measure precisions.
STARTUP_SECONDS = 600.0


def die_with_supervisor(supervisor: int, is_leader: bool = False) -> None:
    """Make this process die with the supervisor that started it."""
    if not is_leader:  # Slurm signals every process of a job, but the leader needs the others to write its checkpoint
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    liveness.end_with_parent(supervisor, signal.SIGKILL)


def supervise(chain: Chain, reporter: Reporter, options: dict[str, Any], placement: Placement) -> dict[str, Any]:
    """Run this host's processes and return the leader's result, or {} if the leader is on another host.

    Raises the error of a worker, `Interrupted` if the leader was asked to stop, or `StageFailed` if a process died or
    hangs. Leaves no process behind.
    """
    supervisor = Supervisor(chain, reporter, placement)
    result: dict[str, Any] = {}
    try:
        if address := rendezvous(reporter, placement):
            supervisor.start(options, address)
            result = supervisor.follow()
    finally:
        supervisor.end()
    if not placement.is_leader:
        reporter.events = None  # only the leader's supervisor reports the result
    return result


@dataclass
class Role:
    """One process of the training: a scheduler, server or worker."""

    name: str
    process: subprocess.Popen[bytes]
    input: pipes.Input | None = None  # workers only
    rank: int | None = None
    last_heartbeat: float = field(default_factory=time.monotonic)
    activity: int = 0
    #: When `activity` last grew, and the longest time between two increases.
    last_progress: float = field(default_factory=time.monotonic)
    longest_step: float = 0.0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    #: Whether all its output has been read.
    closed: bool = False

    def receive(self, event: dict[str, Any]) -> None:
        """Record an event of this process."""
        self.last_heartbeat = time.monotonic()
        if event["event"] == "result":
            self.result = event["value"]
        elif event["event"] == "error":
            self.error = event
        elif event["event"] == "heartbeat" and event["activity"] != self.activity:
            if self.activity:
                self.longest_step = max(self.longest_step, self.last_heartbeat - self.last_progress)
            self.activity, self.last_progress = event["activity"], self.last_heartbeat

    def failure(self) -> str | None:
        """Why the process counts as dead or hanging; None if it is healthy."""
        status = self.process.poll()
        label = f"{self.name} (process {self.process.pid} on {liveness.node_name()})"
        now = time.monotonic()
        if status is not None:
            if not self.closed:
                return None  # its unread output may have the reason
            how = f"was killed by {liveness.signal_name(-status)}" if status < 0 else f"exited with status {status}"
            return f"{label} {how}"
        if now - self.last_heartbeat > HEARTBEAT_TIMEOUT:
            return f"{label} hangs: no heartbeat for {now - self.last_heartbeat:.0f} s"
        limit = max(STALLED_SECONDS, 10 * self.longest_step) if self.activity else STARTUP_SECONDS
        stepping = self.rank is not None and self.activity != FINISHING
        if stepping and now - self.last_progress > limit:
            return (
                f"{label} made no progress for {now - self.last_progress:.0f} s: a worker, the server or the "
                "network hangs"
            )
        return None


class Supervisor:
    """Starts, watches and ends the processes of one host."""

    def __init__(self, chain: Chain, reporter: Reporter, placement: Placement) -> None:
        self.chain, self.reporter, self.placement = chain, reporter, placement
        self.roles: list[Role] = []
        self.events: queue.SimpleQueue[tuple[Role, dict[str, Any] | None]] = queue.SimpleQueue()
        #: Unix sockets on which the processes listen if all of them are on this host.
        self.sockets: list[Path] = []
        self._last_heartbeat = 0.0

    @property
    def workers(self) -> list[Role]:
        return [role for role in self.roles if role.rank is not None]

    def start(self, options: dict[str, Any], address: tuple[str, int]) -> None:
        """Start the scheduler (on the leader's host, at `address`), a server and the workers."""
        environment = self._environment(address)
        if self.placement.is_leader:
            self._start("scheduler", environment)
        self._start("server", environment)
        for rank in self.placement.ranks:
            message = child.request(self.chain, "train", **{**options, "rank": rank, "supervisor": os.getpid()})
            message |= {"heartbeat_seconds": HEARTBEAT_SECONDS, "watchdog_seconds": HEARTBEAT_TIMEOUT}
            worker = self._start("worker", environment, rank)
            worker.input = pipes.Input(worker.process)
            worker.input.send(json.dumps(message))

    def _environment(self, address: tuple[str, int]) -> dict[str, str]:
        host, port = address
        cores = max(1, usable_cores() // len(self.placement.ranks))
        # On a single host use Unix sockets, to which only this user can connect.
        local = {"DMLC_LOCAL": "1"} if self.placement.supervisors == 1 and os.access(SOCKETS, os.W_OK) else {}
        return {
            **local,
            **clean_environment(os.environ),
            **thread_environment(os.environ, cores),
            "DMLC_PS_ROOT_URI": host,
            "DMLC_PS_ROOT_PORT": str(port),
            "DMLC_NODE_HOST": own_address(host),
            "DMLC_NUM_WORKER": str(self.chain.config.distributed.workers),
            "DMLC_NUM_SERVER": str(self.placement.supervisors),
        }

    def _start(self, kind: str, environment: dict[str, str], rank: int | None = None) -> Role:
        server = ("pipeline.training.parameter_server", str(os.getpid()))
        if "DMLC_LOCAL" in environment:
            port = environment["DMLC_PS_ROOT_PORT"] if kind == "scheduler" else str(free_port("127.0.0.1"))
            environment = {**environment, "PORT": port}
            self.sockets.append(SOCKETS / port)
        process = subprocess.Popen(
            module_command(*(server if rank is None else ("pipeline.training",))),
            env={**environment, "DMLC_ROLE": kind, **({} if rank is None else {"DMLC_WORKER_ID": str(rank)})},
            stdin=subprocess.PIPE if rank is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        role = Role(kind if rank is None else f"worker {rank}", process, rank=rank)
        self.roles.append(role)
        threading.Thread(target=self._read, args=(role,), daemon=True).start()
        return role

    def _read(self, role: Role) -> None:
        for event in pipes.events(role.process):
            if event is not None:
                self.events.put((role, event))
        self.events.put((role, None))

    def follow(self) -> dict[str, Any]:
        """Relay events and watch the processes until all workers of this host are done."""
        last_check = time.monotonic()
        while any(worker.result is None for worker in self.workers):
            now = time.monotonic()
            if now - last_check > HEARTBEAT_TIMEOUT / 3:  # this process was suspended: heartbeats may be unread
                for role in self.roles:
                    role.last_heartbeat = role.last_progress = now
            last_check = now
            self._send_commands_and_heartbeats()
            self._check()
            try:
                role, event = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            if event is None:
                role.closed = True
                role.process.wait()
                continue
            role.receive(event)
            self.reporter.activity += 1
            if role.rank == 0 and event["event"] in ("progress", "note"):
                self.reporter.send(**event)
                if event["event"] == "progress":
                    self._remove_sockets()  # all are connected by the first step; let nobody else in
        return self.workers[0].result or {}

    def _send_commands_and_heartbeats(self) -> None:
        due = time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS
        if due:
            self._last_heartbeat = time.monotonic()
        for worker in self.workers:
            assert worker.input is not None
            worker.input.flush()
            if due:
                worker.input.heartbeat()
            if worker.rank == 0:
                for command in filter(self.reporter.take, COMMANDS):
                    worker.input.send(command)

    def _check(self) -> None:
        """Raise if a process has failed. A worker that has delivered its result may exit."""
        for role in self.roles:
            failure = role.failure() if role.result is None else None
            if failure is None:
                continue
            if role.error is not None:
                message = role.error["message"] if role.rank == 0 else f"{role.name}: {role.error['message']}"
                raise errors.BY_NAME.get(role.error["type"], StageFailed)(message)
            raise StageFailed(
                f"distributed training: {failure}; the other processes were killed; run the same command again to "
                "resume from the last checkpoint"
            )

    def _remove_sockets(self) -> None:
        for path in self.sockets:
            path.unlink(missing_ok=True)
        self.sockets.clear()

    def end(self) -> None:
        """Let workers that are done exit, and kill all other processes."""
        for worker in self.workers:
            if worker.result is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(timeout=10)
        for role in self.roles:
            role.process.kill()
            role.process.wait()
        self._remove_sockets()
