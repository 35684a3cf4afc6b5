"""Luigi's client of luigid, more robust: runs only what this command planned, says which other command is in the way,
and survives a luigid that was restarted, dropped this command, or is gone.

luigid lists a killed command's task as running for a minute, and forgets everything when it is killed itself. Both
would make a command end without doing its work. `--local-scheduler` is not affected.
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

#: Seconds between two checks whether another command has finished its task.
POLL_SECONDS = 1.0

#: Seconds after which luigid must accept a task again.
COOLDOWN_SECONDS = 30.0

#: Seconds between two checks whether luigid still knows the running tasks.
LOOK_SECONDS = 5.0

#: Requests that a command cannot do without.
_NEEDED = {"add_task", "add_worker", "count_pending", "get_work", "is_paused", "task_search", "worker_list"}

#: Luigi adds the methods at import time, where type checkers cannot see them.
_Client: Any = RemoteScheduler


class LuigidClient(_Client):
    """Luigi's client of luigid; a few methods do more, the rest is Luigi's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Whether other commands held what this command's next task needs when last asked.
        self.held_up = False
        #: Whether that was the very work, and not a card, which gets free for it.
        self.taken = False
        #: Whether another command has done a task of this one.
        self.overtaken = False
        #: Tells whether a task of this command is complete; the worker knows how.
        self.is_complete: Callable[[str], bool] = lambda task_id: False
        self._sent: dict[str, dict[str, Any]] = {}  # what luigid was told of each task, the latest wins
        self._running: set[str] = set()
        self._worker: dict[str, Any] = {}
        self._telling = threading.RLock()  # the heartbeat tells what runs from a thread of its own
        self._next_look = 0.0
        self._hears = True
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with a message to a task in a forked process, which answers through it."""
        return (LuigidClient, (self._url,))

    def add_worker(self, worker: str, info: Any, **kwargs: Any) -> Any:
        """Tell luigid who works here, or with how many processes now, when its page has asked for other ones."""
        self._worker = {"worker": worker, "info": {**self._worker.get("info", {}), **dict(info)}, **kwargs}
        return super().add_worker(**self._worker)

    def add_task(self, **task: Any) -> Any:
        """Tell luigid of a task or its new status."""
        task_id, status = task["task_id"], task.get("status")
        with self._telling:
            if status in ("PENDING", "DONE", "FAILED", "DISABLED"):
                known = self._sent.get(task_id, {})
                # Luigi omits it when it reports a failure, and a retry would not accept messages.
                task.setdefault("accepts_messages", known.get("accepts_messages", False))
                self._sent[task_id] = known | task
                self._running.discard(task_id)
            return super().add_task(**task)

    def add_task_batcher(self, **about: Any) -> None:
        """Have luigid make no batches: what runs would be its answer, not what this command planned."""

    def get_work(self, **about: Any) -> Any:
        """Ask luigid for work that was planned here; when it has none although ours is not done, find out why."""
        own = about["worker"]
        while True:
            answer = self._planned_work(own, about)
            self.held_up = self.taken = False
            distrust_listings()  # what others finished may be why there is work now
            left = [task_id for task_id, task in self._sent.items() if task["status"] == "PENDING"]
            if _has_work(answer) or not left or about.get("current_tasks"):
                return answer
            if answer["n_pending_tasks"] or answer["running_tasks"]:
                if not self._way_is_cleared(left, own):
                    return answer
            elif not self._registered_again(left, own):
                return answer

    def ping(self, **about: Any) -> Any:
        """Luigi's heartbeat; every few seconds it checks that luigid still knows the running tasks."""
        try:
            answer = super().ping(**about)
        except (RPCError, OSError, ValueError, LookupError):
            if self._hears:
                log.info("%s is not responding; running tasks continue", scheduler.shown(self._url))
            self._hears = False
            return None
        self._hears = True
        if self._running and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            with self._telling:
                states = [self._find(task_id).get("status") for task_id in self._running]
                if any(state in (None, "PENDING", "FAILED") for state in states):
                    log.info("luigid had lost track of the running tasks: registered them again")
                    self._announce()
        return answer

    def explain_disabled(self, task_id: str) -> None:
        """If luigid has disabled a task, say until when and what to do."""
        found = self._find(task_id)
        if found.get("status") == "DISABLED" and found.get("re_enable_able"):
            seconds = luigi.scheduler.scheduler().disable_persist
            until = datetime.datetime.fromtimestamp(found["last_updated"] + seconds, datetime.timezone.utc)
            self._say_once(
                f"{short_name(task_id)}: disabled by luigid after too many failures until {until:%Y-%m-%dT%H:%M:%SZ} "
                f"([scheduler] disable_persist); once fixed, click Re-enable on luigid's page ({self._page})"
            )

    @property
    def _page(self) -> str:
        return f"{scheduler.shown(self._url)}/static/visualiser/index.html"

    # --- work from luigid ---------------------------------------------------------------------------------------

    def _planned_work(self, own: str, about: dict[str, Any]) -> Any:
        """Work from luigid. Its API has no login: whoever reaches it can name any task, and a task runs code."""
        while True:
            answer = super().get_work(**about)
            if not _has_work(answer):
                return answer
            task_id = answer.get("task_id")
            if task_id in self._sent:
                with self._telling:
                    self._sent[task_id] = self._sent[task_id] | {"status": "PENDING"}
                    self._running.add(task_id)
                return answer
            self._refuse(answer.get("batch_task_ids") or [task_id], own)

    def _refuse(self, given: list[str], own: str) -> None:
        names = ", ".join(re.sub(r"[^ -~]", "?", str(task_id))[:100] for task_id in given)
        what = f"{names}: refused: assigned by luigid but not planned by this command"
        self._say_once(f"{what}; restrict access to luigid's port (luigid --address 127.0.0.1)")
        for task_id in given:
            for status in ("FAILED", "DISABLED"):  # the second one keeps luigid from assigning it again
                super().add_task(
                    worker=own, task_id=task_id, status=status, runnable=False, expl=json.dumps("refused: not planned")
                )

    # --- no work although there is something to do ----------------------------------------------------------------

    def _way_is_cleared(self, left: list[str], own: str) -> bool:
        """Report what a dead command ran as failed, or wait for a live one that is in the way; False when not."""
        found = self._in_the_way(left, own)
        if found is None:
            if self.is_paused()["paused"]:
                self._say_once(f"luigid is paused: continue on its page ({self._page})")
            return False
        other, running, line, same_work = found
        # It may live in another container of this host, so a card stays taken until luigid notices; work has a lock.
        if same_work and _is_dead(other):
            log.info("%s: luigid listed it as running in %s, which no longer exists", short_name(running), _who(other))
            lost = json.dumps(f"{_who(other)} is gone")
            super().add_task(worker=other["name"], task_id=running, status="FAILED", expl=lost)
            self._announce()  # while it ran, luigid did not take it from this command
            return True
        self.held_up, self.taken = True, same_work
        waits = vgg().overlap == "wait"
        self._say_once(line, "; waiting for it" if waits else "")
        if waits:
            time.sleep(POLL_SECONDS)
        return waits

    def _in_the_way(self, left: list[str], own: str) -> tuple[dict[str, Any], str, str, bool] | None:
        """The command that runs one of this command's next tasks, or has a resource that it needs; what it runs.

        Also a line about it, and whether it does this command's work. A dead one first: it need not be waited for.
        """
        ready = [
            task_id
            for task_id in left
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
                        line = f"{short_name(task_id)}: already running in {_who(worker)}, according to luigid"
                        return worker, running, f"{line}, which sees within a minute when that process is gone", True
                    if shared:
                        line = f"{short_name(task_id)}: {shared[0]} is taken by {task['name']} of {_who(worker)}"
                        return worker, running, line, shared[0].startswith("data set ")
        return None

    def _registered_again(self, left: list[str], own: str) -> bool:
        """Register again what luigid forgot or just saw done; False when asking again is of no use."""
        found = {task_id: self._find(task_id) for task_id in left}
        done = {task_id for task_id, task in found.items() if task.get("status") == "DONE"}
        elsewhere = {task_id for task_id in done if self.is_complete(task_id)}  # by another command in the meantime
        for task_id in elsewhere:
            self._sent[task_id] = self._sent[task_id] | {"status": "DONE"}
            self.overtaken = True
        if not all(found.values()):
            log.info("luigid was restarted: registering the remaining tasks again")
            self._announce()
        elif any(task["status"] == "PENDING" and own not in task["workers"] for task in found.values()):
            log.info("luigid had dropped this command as dead: registering the remaining tasks again")
            self._announce()
        elif done - elsewhere:
            self._wait_for_cooldown(done - elsewhere)
        else:
            for task_id in left:
                self.explain_disabled(task_id)
            return False
        return True

    def _announce(self) -> None:
        """Register this worker, its running and its remaining tasks with luigid again."""
        with self._telling:
            if self._worker:
                super().add_worker(**self._worker)
            for task_id, task in self._sent.items():
                if task["status"] not in ("FAILED", "DISABLED"):
                    super().add_task(**task | ({"status": "RUNNING"} if task_id in self._running else {}))

    def _wait_for_cooldown(self, task_ids: set[str]) -> None:
        """For 10 s (stable_done_cooldown_secs) luigid does not accept a task again that it has just seen done."""
        log.info("just done by another command, according to luigid: retrying in a few seconds")
        until = time.monotonic() + COOLDOWN_SECONDS
        while time.monotonic() < until and any(self._find(task_id).get("status") == "DONE" for task_id in task_ids):
            time.sleep(POLL_SECONDS)
            for task_id in task_ids:
                super().add_task(**self._sent[task_id])

    def _find(self, task_id: str) -> dict[str, Any]:
        """What luigid knows of a task: `status`, `workers`, …; nothing of an unknown one."""
        found = self.task_search(task_str=task_id)
        return next((tasks[task_id] for tasks in found.values() if task_id in tasks), {})

    def _say_once(self, line: str, more: str = "") -> None:
        if line not in self._told:
            self._told.add(line)
            log.info("%s%s", line, more)

    # --- a luigid that does not answer ----------------------------------------------------------------------------

    def _request(self, url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._request(url, *args, **kwargs)
        except (RPCError, OSError, ValueError, KeyError) as error:
            if threading.current_thread() is not threading.main_thread() or url.rpartition("/")[2] not in _NEEDED:
                raise
            why = scheduler.reason(error.sub_exception if isinstance(error, RPCError) else error)
            log.error(
                "%s stopped responding (%s): finished stages are kept; run the same command again once it is back",
                scheduler.shown(self._url),
                why,
            )
            raise SystemExit(return_code("scheduling_error")) from None

    def _get_retryer(self) -> Retrying:
        """Retry as `[core] rpc_retry_*` says, with one line about it. Threads retry by themselves."""
        if threading.current_thread() is not threading.main_thread():
            return Retrying(stop=stop_after_attempt(1), reraise=True)
        attempts, seconds = self._rpc_retry_attempts, self._rpc_retry_wait

        def tell(state: RetryCallState) -> None:
            if state.attempt_number == 1 < attempts:
                again = f"retrying every {seconds} s, {attempts - 1} times"
                log.info("%s is not responding: %s", scheduler.shown(self._url), again)

        return Retrying(wait=wait_fixed(seconds), stop=stop_after_attempt(attempts), reraise=True, after=tell)


def _has_work(answer: dict[str, Any]) -> bool:
    return answer.get("task_id") is not None or "batch_id" in answer


def short_name(task_id: str) -> str:
    """A task's family and first parameters, out of its name at the scheduler."""
    return re.sub(r"__.*", "", task_id)


def _is_dead(worker: dict[str, Any]) -> bool:
    # A container's next command can have the very process number of the one before.
    number = worker.get("pid")
    return worker.get("host") == socket.gethostname() and (number == os.getpid() or is_gone(number))


def _who(worker: dict[str, Any]) -> str:
    return f"process {worker.get('pid')} on {worker.get('host')}"


def create_remote_scheduler(self: object, url: str) -> LuigidClient:
    """In place of Luigi's own factory method; raises `SystemExit` when no luigid answers."""
    client = LuigidClient(url)
    if wrong := scheduler.problem(client):
        log.error("%s", wrong)
        raise SystemExit(return_code("scheduling_error"))
    return client
