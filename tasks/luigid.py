"""What the `luigi` command adds when it talks to luigid: commands that were killed, and a luigid that was restarted.

luigid keeps a killed command's task as running for a minute, and forgets everything when it is killed itself. Both
would make a command end without doing its work. Acts when it is imported; `--local-scheduler` is left alone.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import Any

from luigi import interface
from luigi.rpc import RemoteScheduler

from pipeline.locks import is_gone
from pipeline.mirror import all_mirrors
from tasks.defaults import log, vgg

#: Seconds between two questions to luigid whether another command has finished its task.
POLL_SECONDS = 1.0

#: Seconds after which luigid must have taken an order again.
COOLDOWN_SECONDS = 30.0


#: Luigi adds the methods when it is imported, so type checkers cannot see them.
_Client: Any = RemoteScheduler


class Scheduler(_Client):
    """Luigi's client of luigid. `add_task` and `get_work` do a little more; everything else is Luigi's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent: dict[str, dict[str, Any]] = {}

    def add_task(self, **task: Any) -> Any:
        """Tell luigid of a task or its new status; before the first time, see to other commands that run it."""
        if task["task_id"] not in self._sent and task.get("status") == "PENDING":
            self._see_to_others(task["task_id"], task["worker"])
        if task.get("status") in ("PENDING", "DONE", "FAILED"):
            self._sent[task["task_id"]] = task
        return super().add_task(**task)

    def get_work(self, **about: Any) -> Any:
        """Ask luigid for work; when it has none although ours is not done, find out why and ask again."""
        answer = super().get_work(**about)
        for mirror in all_mirrors():
            mirror.doubtful_before = time.monotonic()  # what others finished may be why there is work now
        nothing = answer.get("task_id") is None and not answer["n_pending_tasks"] and not answer["running_tasks"]
        unfinished = [task_id for task_id, task in self._sent.items() if task["status"] == "PENDING"]
        if not nothing or not unfinished:
            return answer
        states = {task_id: self._state(task_id) for task_id in unfinished}
        if None in states.values():
            log.info("luigid was restarted: telling it again what is left to do")
            for task in self._sent.values():
                if task["status"] != "FAILED":
                    super().add_task(**task)
        elif "DONE" in states.values():
            self._wait_for_cooldown([task_id for task_id, state in states.items() if state == "DONE"])
        else:
            return answer
        return super().get_work(**about)

    def _wait_for_cooldown(self, task_ids: list[str]) -> None:
        """For 10 s (stable_done_cooldown_secs) luigid takes no new order for a task that it has just seen done."""
        log.info("luigid has just seen it done by another command: looking again in a few seconds")
        until = time.monotonic() + COOLDOWN_SECONDS
        while time.monotonic() < until and any(self._state(task_id) == "DONE" for task_id in task_ids):
            time.sleep(POLL_SECONDS)
            for task_id in task_ids:
                super().add_task(**self._sent[task_id])

    def _state(self, task_id: str) -> str | None:
        """What luigid thinks of a task (`PENDING`, `DONE`, …), or None when it does not know it."""
        found = self.task_search(task_str=task_id)
        return next((state for state, tasks in found.items() if task_id in tasks), None)

    def _see_to_others(self, task_id: str, own: str) -> None:
        """Report a killed command's task as failed; wait for a living command, or say who it is."""
        told = False
        while other := self._running(task_id, own):
            name, host, pid = other["name"], other.get("host"), other.get("pid")
            what = re.sub(r"__.*", "", task_id)
            # A container's next command can have the very process number of the one before.
            if host == socket.gethostname() and (pid == os.getpid() or is_gone(pid)):
                log.info("%s: luigid still had it as running in process %s, which is gone", what, pid)
                lost = json.dumps(f"process {pid} on {host} is gone")
                super().add_task(worker=name, task_id=task_id, status="FAILED", expl=lost)
                return
            if not told:
                log.info("%s: being run by process %s on %s, says luigid%s", what, pid, host, _advice())
                told = True
            if vgg().overlap != "wait":
                return
            time.sleep(POLL_SECONDS)

    def _running(self, task_id: str, own: str) -> dict[str, Any] | None:
        """The command that luigid has as running the task, if it is another one."""
        workers = self.worker_list()
        return next((w for w in workers if w["name"] != own and task_id in w.get("running", ())), None)


def _advice() -> str:
    if vgg().overlap == "wait":
        return "; waiting for it"
    return "; if it is gone, luigid will notice within a minute or so (worker_disconnect_delay)"


def _create_remote_scheduler(self: object, url: str) -> Scheduler:
    return Scheduler(url)


# Luigi takes another factory only from a program that calls `luigi.run`, not from its command line.
interface._WorkerSchedulerFactory.create_remote_scheduler = _create_remote_scheduler  # type: ignore[method-assign]
