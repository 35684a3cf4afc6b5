"""One training in several processes, on one host or many: MXNet's `dist_sync` roles, started and watched here.

The process that `launch.run_stage` starts becomes a supervisor. It starts the roles of its host (scheduler, server,
workers), passes on what worker 0 says and is told, and ends them all as soon as one is dead or gives no sign of life:
ps-lite itself lets the others wait for ever (apache/mxnet issues 15923, 4887, 6063). Under `srun` with one task a
worker, each task is the supervisor of its own worker; else all are started here.
Run as `python -m pipeline.training.distributed scheduler|server`, it is that role.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.config import Config
from pipeline.errors import ConfigError, Interrupted, PipelineError, StageFailed
from pipeline.process import child, spinning
from pipeline.process.cores import thread_environment, usable_cores
from pipeline.process.launcher import own_environment
from pipeline.process.parent import module_command
from pipeline.workspace.freshness import Chain

#: How often a role gives a sign of life, and after how long a silence it counts as hanging.
BEAT_SECONDS, HANGING_SECONDS = 2.0, 30.0

#: A worker that lives but gets nothing done for so long hangs too; ten times its longest step, if that is longer.
STALLED_SECONDS = 45.0

#: The same before its first step: it loads MXNet and the data set, and may measure precisions.
STARTING_SECONDS = 600.0

#: The folder in which ps-lite makes its sockets with DMLC_LOCAL.
SOCKETS = Path("/tmp")

#: How long the tasks of an `srun` wait for a word of the first one, which may have to wait for its lock before.
MEETING_SECONDS = child.LOCK_SECONDS + 120.0


@dataclass(frozen=True)
class Place:
    """Which workers this supervisor has, and how many supervisors there are."""

    ranks: tuple[int, ...]
    supervisors: int = 1

    @property
    def leads(self) -> bool:
        return 0 in self.ranks


def place(config: Config, launched: bool) -> Place:
    """Where this process stands, from Slurm's environment when a launcher started it.

    Raises `ConfigError` when the number of tasks is neither one nor the number of workers.
    """
    workers = config.distributed.workers
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if launched else 1
    if tasks == 1:
        return Place(tuple(range(workers)))
    if tasks != workers:
        raise ConfigError(
            f"distributed.workers: found {workers}, but the launcher started {tasks} tasks: "
            f"give srun --ntasks={workers}, or --ntasks=1 for all of them on one host"
        )
    return Place((int(os.environ["SLURM_PROCID"]),), tasks)


def supervise(chain: Chain, reporter: child.Reporter, options: dict[str, Any], where: Place) -> dict[str, Any]:
    """Start this host's roles and watch them to the end; gives worker 0's result, or nothing when it is elsewhere.

    Raises the error of a worker, `Interrupted` when worker 0 was asked to stop, `StageFailed` when a role died or
    hangs. No role is left in any case.
    """
    team = Team(chain, reporter, where)
    result: dict[str, Any] = {}
    try:
        address = _meet(reporter, where)
        if address:
            team.start(options, address)
            result = team.follow()
    finally:
        team.end()
    if not where.leads:
        reporter.events = None  # the result is for worker 0's supervisor to tell
    return result


@dataclass
class Role:
    """One process of the training, and when it was last heard of."""

    name: str
    process: subprocess.Popen[str]
    rank: int | None = None
    heard: float = field(default_factory=time.monotonic)
    activity: int = 0
    #: When it last got something done, and the longest time that this took so far.
    moved: float = field(default_factory=time.monotonic)
    longest: float = 0.0
    patience: float = HANGING_SECONDS
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    #: When it was first seen ended, and whether all that it said has been read.
    ended: float | None = None
    closed: bool = False

    def hear(self, event: dict[str, Any]) -> None:
        """Take note of one event."""
        self.heard = time.monotonic()
        if event.get("event") == "result":
            self.result = event["value"]
        elif event.get("event") == "error":
            self.error = event
        elif event.get("event") == "beat" and event["activity"] != self.activity:
            if self.activity:
                self.longest = max(self.longest, self.heard - self.moved)
            self.activity, self.moved = event["activity"], self.heard

    def trouble(self) -> str | None:
        """What is wrong with it, if something is."""
        status = self.process.poll()
        about = f"{self.name} (process {self.process.pid} on {child.host_name()})"
        moment = time.monotonic()
        if status is not None:
            self.ended = self.ended or moment
            if not self.closed and moment - self.ended < 5:
                return None  # perhaps its last words say why
            how = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            return f"{about} {how}"
        if moment - self.heard > self.patience:
            return f"{about} hangs: no sign of life for {moment - self.heard:.0f} s"
        stalled = max(STALLED_SECONDS, 10 * self.longest) if self.activity else STARTING_SECONDS
        stepping = self.rank is not None and self.activity != child.FINISHING
        if stepping and moment - self.moved > stalled:
            return (
                f"{about} got nothing done for {moment - self.moved:.0f} s: a worker, the server or the network hangs"
            )
        return None

    def say(self, line: str) -> None:
        """One line to its standard input."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it may have ended in the meantime
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()


class Team:
    """The roles of one host."""

    def __init__(self, chain: Chain, reporter: child.Reporter, where: Place) -> None:
        self.chain, self.reporter, self.where = chain, reporter, where
        self.roles: list[Role] = []
        self.events: queue.SimpleQueue[tuple[Role, dict[str, Any] | None]] = queue.SimpleQueue()
        #: Seconds of silence after which a role counts as hanging.
        self.patience = HANGING_SECONDS
        #: Where the roles of one host listen.
        self.sockets: list[Path] = []
        self._stopping = False
        self._spoken = 0.0

    @property
    def workers(self) -> list[Role]:
        return [role for role in self.roles if role.rank is not None]

    def start(self, options: dict[str, Any], address: tuple[str, int]) -> None:
        """Start scheduler (beside worker 0), server and workers; `address` is the scheduler's.

        `options["hanging_seconds"]` may set another patience with silent roles.
        """
        self.patience = float(options.get("hanging_seconds", HANGING_SECONDS))
        environment = self._environment(address)
        if self.where.leads:
            self._start("scheduler", environment)
        self._start("server", environment)
        for rank in self.where.ranks:
            own = {**options, "rank": rank, "supervisor": os.getpid()}
            own.pop("launched", None)
            beats = {"beat_seconds": BEAT_SECONDS, "silence_seconds": self.patience}
            self._start("worker", environment, rank).say(json.dumps({**child.request(self.chain, **own), **beats}))

    def _environment(self, address: tuple[str, int]) -> dict[str, str]:
        host, port = address
        share = max(1, usable_cores() // len(self.where.ranks))
        # On one host they meet in the file system, where only this user may connect.
        local = {"DMLC_LOCAL": "1"} if self.where.supervisors == 1 and os.access(SOCKETS, os.W_OK) else {}
        return {
            **local,
            **own_environment(os.environ),
            **thread_environment(os.environ, share),
            "DMLC_PS_ROOT_URI": host,
            "DMLC_PS_ROOT_PORT": str(port),
            "DMLC_NODE_HOST": own_address(host),
            "DMLC_NUM_WORKER": str(self.chain.config.distributed.workers),
            "DMLC_NUM_SERVER": str(self.where.supervisors),
        }

    def _start(self, kind: str, environment: dict[str, str], rank: int | None = None) -> Role:
        module = ["pipeline.training"] if rank is not None else [__spec__.name, kind, str(os.getpid())]
        if "DMLC_LOCAL" in environment:
            port = environment["DMLC_PS_ROOT_PORT"] if kind == "scheduler" else str(_free_port("127.0.0.1"))
            environment = {**environment, "PORT": port}
            self.sockets.append(SOCKETS / port)
        process = subprocess.Popen(
            module_command(*module),
            env={**environment, "DMLC_ROLE": kind, **({} if rank is None else {"DMLC_WORKER_ID": str(rank)})},
            stdin=subprocess.PIPE if rank is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        role = Role(kind if rank is None else f"worker {rank}", process, rank, patience=self.patience)
        self.roles.append(role)
        threading.Thread(target=self._listen, args=(role,), daemon=True).start()
        return role

    def _listen(self, role: Role) -> None:
        assert role.process.stdout is not None
        for line in role.process.stdout:
            with contextlib.suppress(ValueError):
                self.events.put((role, json.loads(line)))
        self.events.put((role, None))

    def follow(self) -> dict[str, Any]:
        """Until all workers here are done."""
        while any(worker.result is None for worker in self.workers):
            self._talk()
            try:
                role, event = self.events.get(timeout=0.2)
            except queue.Empty:
                self._check()
                continue
            if event is None:
                role.closed = True
                role.process.wait()
                self._check()
                continue
            role.hear(event)
            self.reporter.activity += 1
            if role.rank == 0 and event.get("event") in ("progress", "note"):
                self.reporter.send(**event)
                if event["event"] == "progress":
                    self._close()
        return self.workers[0].result or {}

    def _talk(self) -> None:
        """Pass on what this process was asked, and keep the workers sure of it."""
        lead = next((role for role in self.roles if role.rank == 0), None)
        if lead and self.reporter.stopping and not self._stopping:
            self._stopping = True
            lead.say("stop")
        for command in child.COMMANDS:
            if lead and command != "stop" and self.reporter.take(command):
                lead.say(command)
        if time.monotonic() - self._spoken >= BEAT_SECONDS:
            self._spoken = time.monotonic()
            for worker in self.workers:
                worker.say("")

    def _check(self) -> None:
        """Raise when a role has failed; one that has done its work may end."""
        for role in self.roles:
            trouble = role.trouble() if role.result is None else None
            if trouble is None:
                continue
            if role.error is not None:
                raise _error_of(role)
            raise StageFailed(
                f"distributed training: {trouble}; the others were ended; run the same command again to go on from "
                "the last checkpoint"
            )

    def _close(self) -> None:
        """From the first step on all are connected, and nobody else is to be."""
        for path in self.sockets:
            path.unlink(missing_ok=True)
        self.sockets.clear()

    def end(self) -> None:
        """Leave no process. A worker that is done ends by itself; nothing of the others is worth waiting for."""
        for worker in self.workers:
            if worker.result is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(timeout=10)
        for role in self.roles:
            role.process.kill()
            role.process.wait()
        self._close()


def _error_of(role: Role) -> PipelineError:
    assert role.error is not None
    kind, message = role.error["type"], role.error["message"]
    if role.rank != 0:
        message = f"{role.name}: {message}"
    return errors.BY_NAME.get(kind, StageFailed)(message)


# --- where the processes meet -------------------------------------------------------------------------------------


def dismiss(reporter: child.Reporter, where: Place) -> None:
    """Tell the other supervisors that there is nothing to do."""
    if where.supervisors > 1:
        reporter.send("tell", line=json.dumps({"done": True}))


def _meet(reporter: child.Reporter, where: Place) -> tuple[str, int] | None:
    """Address and port of the scheduler, or None when there is nothing to do.

    Of several supervisors the first chooses, and its parent tells the others.
    """
    if where.supervisors == 1:
        return "127.0.0.1", _free_port("127.0.0.1")
    if where.leads:
        host = own_address(os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        address = {"scheduler": host, "port": _free_port("")}
        reporter.send("tell", line=json.dumps(address))
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        if reporter.stopping:
            raise Interrupted("stopped before the training began; run the same command again")
        with contextlib.suppress(queue.Empty):
            told = json.loads(reporter.told.get(timeout=0.2))
            return None if "done" in told else (told["scheduler"], told["port"])
    raise StageFailed(
        f"distributed training: no word from the first task within {MEETING_SECONDS:.0f} s; the launcher has to pass "
        "standard input to all tasks, as srun does by itself"
    )


def own_address(other: str) -> str:
    """The address of this host by which `other` reaches it; DMLC_NODE_HOST, where it is set, wins."""
    if "DMLC_NODE_HOST" in os.environ:
        return os.environ["DMLC_NODE_HOST"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # sends nothing
        address = probe.getsockname()[0]
    if not address.startswith("127.") or int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) == 1:
        return address
    with contextlib.suppress(OSError):  # the first task runs where srun was started: by its name it is reachable
        return socket.gethostbyname(child.host_name())
    return address


def _free_port(host: str) -> int:
    while True:
        with socket.socket() as listener:
            listener.bind((host, 0))
            port = int(listener.getsockname()[1])
        if not (SOCKETS / str(port)).exists():  # another training's, on this host
            return port


# --- a role's own process -----------------------------------------------------------------------------------------


def follow_supervisor(supervisor: int, rank: int | None = None) -> None:
    """Die with the supervisor. Only worker 0 obeys SIGTERM: the others must go on while it writes its checkpoint.

    Slurm sends SIGTERM to every process of a job.
    """
    if rank != 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != supervisor:
        os._exit(child.EXIT_INTERRUPTED)


def serve(kind: str, supervisor: int) -> None:
    """Be the scheduler or a server until killed, as `mxnet.kvstore_server` is, without loading the rest of MXNet."""
    follow_supervisor(supervisor)
    os.umask(0o077)  # for its socket
    assert os.environ["DMLC_ROLE"] == kind
    reporter = child.Reporter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    threading.Thread(target=child.beat, args=(reporter, BEAT_SECONDS), daemon=True).start()
    from pipeline.runtime import native_library

    library, store = native_library(), ctypes.c_void_p()
    spinning.watch(library, spinning.Load(), lambda line: None)
    # The workers send no optimizer: nothing but the switch to synchronous sums ever comes, which needs no answer here.
    ignore = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda head, body, store: None)
    if library.MXKVStoreCreate(b"dist", ctypes.byref(store)) or library.MXKVStoreRunServer(store, ignore, None):
        library.MXGetLastError.restype = ctypes.c_char_p
        raise SystemExit(f"MXNet's {kind} failed: {library.MXGetLastError().decode(errors='replace')}")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
