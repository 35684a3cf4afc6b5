"""A more robust version of Luigi's luigid client.

It runs only tasks that this command planned, reports which other command blocks it, and survives a luigid that was
restarted, dropped this command, or is gone. luigid lists a killed command's task as running for a minute, and forgets
everything when it is killed itself; with Luigi's own client a command would then exit without doing its work. Does not
apply to `--local-scheduler`.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import luigi.scheduler
from luigi.rpc import RemoteScheduler, RPCError
from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_fixed

from pipeline.storage import distrust_listings
from pipeline.storage.locks import is_gone
from tasks import scheduler
from tasks.exit_codes import return_code
from tasks.log import log
from tasks.settings import vgg

POLL_SECONDS = 1.0  # for another command to finish
COOLDOWN_SECONDS = 30.0  # to wait for luigid to accept a task that it has just seen done
CHECK_SECONDS = 5.0  # between checks that luigid still knows the running tasks

#: Requests without which a command cannot continue.
_ESSENTIAL = {"add_task", "add_worker", "count_pending", "get_work", "is_paused", "task_search", "worker_list"}

#: Luigi adds the methods at import time: type checkers cannot see them.
_Client: Any = RemoteScheduler


class LuigidClient(_Client):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Whether another command blocked this one at the last request for work.
        self.blocked = False
        #: Whether it was doing the same work, rather than holding a GPU, which this command waits for.
        self.taken = False
        #: Whether another command has done one of this command's tasks.
        self.done_elsewhere = False
        self.is_complete: Callable[[str], bool] = lambda task_id: False  # set by the worker
        self._sent: dict[str, dict[str, Any]] = {}  # task id -> last registration with luigid
        self._running: set[str] = set()
        self._worker: dict[str, Any] = {}
        self._lock = threading.RLock()  # the heartbeat thread registers tasks, too
        self._next_check = 0.0
        self._responding = True
        self._logged: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # Luigi pickles the client into each message to a task in a forked process, which replies through it.
        return (LuigidClient, (self._url,))

    def add_worker(self, worker: str, info: Any, **kwargs: Any) -> Any:
        """Register this worker, or update its number of processes when luigid's page has changed it."""
        self._worker = {"worker": worker, "info": {**self._worker.get("info", {}), **dict(info)}, **kwargs}
        return super().add_worker(**self._worker)

    def add_task(self, **task: Any) -> Any:
        task_id, status = task["task_id"], task.get("status")
        with self._lock:
            if status in ("PENDING", "DONE", "FAILED", "DISABLED"):
                known = self._sent.get(task_id, {})
                # Omitted when Luigi reports a failure; a retry would then not accept messages.
                task.setdefault("accepts_messages", known.get("accepts_messages", False))
                self._sent[task_id] = known | task
                self._running.discard(task_id)
            return super().add_task(**task)

    def add_task_batcher(self, **kwargs: Any) -> None:
        """Disable batches: luigid chooses their parameters, so this command has not planned them."""

    def get_work(self, **kwargs: Any) -> Any:
        """Request planned work. If luigid has none although tasks are pending, find out why and try to recover."""
        own = kwargs["worker"]
        while True:
            response = self._planned_work(own, kwargs)
            self.blocked = self.taken = False
            distrust_listings()  # there may be work now because another command has finished something
            pending = [task_id for task_id, task in self._sent.items() if task["status"] == "PENDING"]
            if _has_work(response) or not pending or kwargs.get("current_tasks"):
                return response
            if response["n_pending_tasks"] or response["running_tasks"]:
                if not self._unblock(pending, own):
                    return response
            elif not self._recover(pending, own):
                return response

    def ping(self, **kwargs: Any) -> Any:
        """Send Luigi's heartbeat. Every few seconds also check that luigid still knows the running tasks."""
        try:
            response = super().ping(**kwargs)
        except (RPCError, OSError, ValueError, LookupError):
            if self._responding:
                log.info("%s is not responding; running tasks continue", scheduler.shown(self._url))
            self._responding = False
            return None
        self._responding = True
        if self._running and time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_SECONDS
            with self._lock:
                statuses = [self._find(task_id).get("status") for task_id in self._running]
                if any(status in (None, "PENDING", "FAILED") for status in statuses):
                    log.info("luigid had lost track of the running tasks: registering them again")
                    self._register_all()
        return response

    def explain_disabled(self, task_id: str) -> None:
        """If luigid has disabled a task, log until when and what to do."""
        task = self._find(task_id)
        if task.get("status") == "DISABLED" and task.get("re_enable_able"):
            seconds = luigi.scheduler.scheduler().disable_persist
            until = datetime.datetime.fromtimestamp(task["last_updated"] + seconds, datetime.timezone.utc)
            self._log_once(
                f"{short_name(task_id)}: disabled by luigid after too many failures until {until:%Y-%m-%dT%H:%M:%SZ} "
                f"([scheduler] disable_persist); once fixed, click Re-enable on luigid's page ({self._page})"
            )

    @property
    def _page(self) -> str:
        return f"{scheduler.shown(self._url)}/static/visualiser/index.html"

    # --- work from luigid ---------------------------------------------------------------------------------------

    def _planned_work(self, own: str, request: dict[str, Any]) -> Any:
        """Request work and refuse any task that this command has not planned.

        luigid's API has no login: anyone who can reach it can submit any task, and tasks run code.
        """
        while True:
            response = super().get_work(**request)
            if not _has_work(response):
                return response
            task_id = response.get("task_id")
            if task_id in self._sent:
                with self._lock:
                    self._sent[task_id] = self._sent[task_id] | {"status": "PENDING"}
                    self._running.add(task_id)
                return response
            self._refuse(response.get("batch_task_ids") or [task_id], own)

    def _refuse(self, task_ids: list[str], own: str) -> None:
        names = ", ".join(re.sub(r"[^ -~]", "?", str(task_id))[:100] for task_id in task_ids)
        refusal = f"{names}: refused: assigned by luigid but not planned by this command"
        self._log_once(f"{refusal}; restrict access to luigid's port (luigid --address 127.0.0.1)")
        for task_id in task_ids:
            for status in ("FAILED", "DISABLED"):  # DISABLED keeps luigid from assigning it again
                super().add_task(
                    worker=own, task_id=task_id, status=status, runnable=False, expl=json.dumps("refused: not planned")
                )

    # --- no work although tasks are pending ---------------------------------------------------------------------

    def _unblock(self, pending: list[str], own: str) -> bool:
        """Report a dead command's task as failed, or wait for a live command. Returns whether to ask for work again."""
        blocker = self._find_blocker(pending, own)
        if blocker is None:
            if self.is_paused()["paused"]:
                self._log_once(f"luigid is paused: continue on its page ({self._page})")
            return False
        other, running, line, same_work = blocker
        # A process that looks dead may live in another container of this host. Work is protected by a lock, a GPU is
        # not: it stays taken until luigid notices.
        if same_work and _is_dead(other):
            log.info(
                "%s: luigid listed it as running in %s, which no longer exists", short_name(running), _process_of(other)
            )
            explanation = json.dumps(f"{_process_of(other)} is gone")
            super().add_task(worker=other["name"], task_id=running, status="FAILED", expl=explanation)
            self._register_all()  # luigid ignored this command's registration while the task was running
            return True
        self.blocked, self.taken = True, same_work
        waits = vgg().overlap == "wait"
        self._log_once(line, "; waiting for it" if waits else "")
        if waits:
            time.sleep(POLL_SECONDS)
        return waits

    def _find_blocker(self, pending: list[str], own: str) -> tuple[dict[str, Any], str, str, bool] | None:
        """Find another command that runs one of this command's next tasks or holds a resource that one needs.

        Returns its worker, its task, a log line, and whether it does the same work. Prefers dead commands, for which
        this one need not wait.
        """
        ready = [
            task_id
            for task_id in pending
            if all(self._sent.get(dep, {}).get("status") == "DONE" for dep in self._sent[task_id].get("deps") or ())
        ]
        for worker in sorted(self.worker_list(), key=_is_dead, reverse=True):
            if worker["name"] == own:
                continue
            for running, task in (worker.get("running") or {}).items():
                held = task.get("resources_running") or task.get("resources") or {}
                for task_id in ready:
                    shared = sorted(set(held) & set(self._sent[task_id].get("resources") or ()))
                    if running == task_id:
                        line = f"{short_name(task_id)}: already running in {_process_of(worker)}, according to luigid"
                        return worker, running, f"{line}, which notices a dead process within a minute", True
                    if shared:
                        line = f"{short_name(task_id)}: {shared[0]} is taken by {task['name']} of {_process_of(worker)}"
                        return worker, running, line, shared[0].startswith("data set ")
        return None

    def _recover(self, pending: list[str], own: str) -> bool:
        """Register tasks again that luigid forgot or has just seen done. Returns whether to ask for work again."""
        known = {task_id: self._find(task_id) for task_id in pending}
        done = {task_id for task_id, task in known.items() if task.get("status") == "DONE"}
        elsewhere = {task_id for task_id in done if self.is_complete(task_id)}  # by another command in the meantime
        for task_id in elsewhere:
            self._sent[task_id] = self._sent[task_id] | {"status": "DONE"}
            self.done_elsewhere = True
        if not all(known.values()):
            log.info("luigid was restarted: registering the remaining tasks again")
            self._register_all()
        elif any(task["status"] == "PENDING" and own not in task["workers"] for task in known.values()):
            log.info("luigid had dropped this command as dead: registering the remaining tasks again")
            self._register_all()
        elif done - elsewhere:
            self._wait_for_cooldown(done - elsewhere)
        else:
            for task_id in pending:
                self.explain_disabled(task_id)
            return False
        return True

    def _register_all(self) -> None:
        with self._lock:
            if self._worker:
                super().add_worker(**self._worker)
            for task_id, task in self._sent.items():
                if task["status"] not in ("FAILED", "DISABLED"):
                    super().add_task(**task | ({"status": "RUNNING"} if task_id in self._running else {}))

    def _wait_for_cooldown(self, task_ids: set[str]) -> None:
        """Register tasks until luigid accepts them: for 10 s (stable_done_cooldown_secs) it ignores one just done."""
        log.info("just done by another command, according to luigid: retrying in a few seconds")
        until = time.monotonic() + COOLDOWN_SECONDS
        while time.monotonic() < until and any(self._find(task_id).get("status") == "DONE" for task_id in task_ids):
            time.sleep(POLL_SECONDS)
            for task_id in task_ids:
                super().add_task(**self._sent[task_id])

    def _find(self, task_id: str) -> dict[str, Any]:
        """luigid's record of a task (`status`, `workers`, …); empty if it does not know the task."""
        by_status = self.task_search(task_str=task_id)
        return next((tasks[task_id] for tasks in by_status.values() if task_id in tasks), {})

    def _log_once(self, line: str, more: str = "") -> None:
        if line not in self._logged:
            self._logged.add(line)
            log.info("%s%s", line, more)

    # --- an unresponsive luigid -----------------------------------------------------------------------------------

    def _request(self, url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._request(url, *args, **kwargs)
        except (RPCError, OSError, ValueError, KeyError) as error:
            if threading.current_thread() is not threading.main_thread() or url.rpartition("/")[2] not in _ESSENTIAL:
                raise
            reason = scheduler.reason(error.sub_exception if isinstance(error, RPCError) else error)
            log.error(
                "%s stopped responding (%s): finished stages are kept; run the same command again once it is back",
                scheduler.shown(self._url),
                reason,
            )
            raise SystemExit(return_code("scheduling_error")) from None

    def _get_retryer(self) -> Retrying:
        """Retry as configured by `[core] rpc_retry_*` and log it once. Background threads do not retry."""
        if threading.current_thread() is not threading.main_thread():
            return Retrying(stop=stop_after_attempt(1), reraise=True)
        attempts, seconds = self._rpc_retry_attempts, self._rpc_retry_wait

        def log_first(state: RetryCallState) -> None:
            if state.attempt_number == 1 < attempts:
                retries = f"retrying every {seconds} s, {attempts - 1} times"
                log.info("%s is not responding: %s", scheduler.shown(self._url), retries)

        return Retrying(wait=wait_fixed(seconds), stop=stop_after_attempt(attempts), reraise=True, after=log_first)


def _has_work(response: dict[str, Any]) -> bool:
    return response.get("task_id") is not None or "batch_id" in response


def short_name(task_id: str) -> str:
    """The first part of a task id: the family and first parameters."""
    return re.sub(r"__.*", "", task_id)


def _is_dead(worker: dict[str, Any]) -> bool:
    # In a container, successive commands often get the same process id.
    pid = worker.get("pid")
    return worker.get("host") == socket.gethostname() and (pid == os.getpid() or is_gone(pid))


def _process_of(worker: dict[str, Any]) -> str:
    return f"process {worker.get('pid')} on {worker.get('host')}"


def create_remote_scheduler(self: object, url: str) -> LuigidClient:
    """Replace Luigi's factory method. Raises `SystemExit` if luigid does not respond."""
    client = LuigidClient(url)
    if problem := scheduler.problem(client):
        log.error("%s", problem)
        raise SystemExit(return_code("scheduling_error"))
    return client
