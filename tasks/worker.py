"""Luigi's worker with better retries: no retry of what cannot succeed, and a line that says when the next one comes.

Used under luigid and with --local-scheduler. The exit code follows each task's last attempt: a task that found another
command's lock and was done later did not fail.
"""

from __future__ import annotations

import contextlib
import html
from typing import Any

import luigi.worker
from luigi import execution_summary
from luigi.rpc import RPCError
from luigi.scheduler import DISABLED, DONE, FAILED, PENDING
from luigi.scheduler import scheduler as scheduler_section

from pipeline.errors import AlreadyRunning, Interrupted, PipelineError
from tasks import notification
from tasks.exit_codes import MILD, asked_for, exit_with, return_code
from tasks.log import log
from tasks.scheduler_client import LuigidClient, short_name
from tasks.settings import vgg


class Failure(str):
    """What `on_failure` returns: text, as Luigi passes it on to the worker and the scheduler, and how to treat it."""

    final = False  # not to be retried: it would fail in the same way
    blameless = False  # another command had the lock, or somebody asked it to stop
    busy = False  # another command had the lock


def failure(exception: BaseException, text: str, final: bool = False) -> Failure:
    """How to treat an exception that a task raised; `final` when it must not be retried whatever it is."""
    told = Failure(text)
    told.busy = isinstance(exception, AlreadyRunning)
    told.final = final or (isinstance(exception, PipelineError) and not exception.retryable)
    told.blameless = isinstance(exception, (AlreadyRunning, Interrupted))
    return told


class Worker(luigi.worker.Worker):
    """Luigi's worker, which tells the scheduler more about failures."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failures: dict[str, Failure] = {}  # of tasks whose last attempt failed
        self._luigid = self._scheduler if isinstance(self._scheduler, LuigidClient) else None
        if self._luigid:
            self._luigid.is_complete = lambda task_id: self._is_complete(self._scheduled_tasks[task_id])

    def run(self) -> bool:
        done = super().run()
        self._forgive()
        busy = {task_id for task_id, told in self._failures.items() if told.busy}
        held_up = self._luigid and self._luigid.held_up
        mild = asked_for() in MILD
        if busy or held_up or mild:
            met = execution_summary._summary_dict(self)
            kinds = {  # as Luigi has them, but that a task which another command does is no failure
                "already_running": not mild and (busy or held_up or met["run_by_other_worker"]),
                "missing_data": met["still_pending_ext"],
                "not_run": met["not_run"] and not held_up,
                "task_failed": {task.task_id for task in met["failed"]} - busy,
                "scheduling_error": met["scheduling_error"],
            }
            code = max((return_code(kind) for kind, there in kinds.items() if there), default=0)
            if code or not mild:
                exit_with(code)
        return done

    def _keep_alive(self, get_work_response: Any) -> bool:
        met = self._met_a_lock or (self._luigid and self._luigid.taken)
        return super()._keep_alive(get_work_response) and not (met and self._leaves)

    @property
    def _met_a_lock(self) -> bool:
        return any(told.busy for told in self._failures.values())

    @property
    def _leaves(self) -> bool:
        """Whether what another command is working on is left to it; several trainings are shared with it."""
        trainings = [task for task in self._scheduled_tasks.values() if task.task_family == "TrainVGG"]
        return vgg().overlap == "leave" and len(trainings) < 2

    def _email_task_failure(self, task: Any, formatted_traceback: Any) -> None:
        # Luigi calls it for each failure, with what `on_failure` gave as it was.
        told = formatted_traceback
        if not isinstance(told, Failure):  # the task's process died before it could tell
            told = Failure(told)
            notification.failed(task, told)
        self._failures[task.task_id] = told
        if not told.blameless:
            super()._email_task_failure(task, told)

    def _announce_scheduling_failure(self, task: Any, expl: str) -> None:
        notification.failed(task, expl)
        super()._announce_scheduling_failure(task, notification.without_traceback(expl))  # for luigid's own e-mails

    def _email_error(self, task: Any, formatted_traceback: str, subject: str, headline: str) -> None:
        notification.mail(task, formatted_traceback)  # Luigi's own says last why

    def _add_task(self, *args: Any, **kwargs: Any) -> None:
        task_id, status = kwargs["task_id"], kwargs["status"]
        headline = ""
        if status == DONE:  # from a running task a link would reset its resources and whether it takes messages
            headline, kwargs["tracking_url"] = self._result(task_id)
        super()._add_task(*args, **kwargs)
        if status == FAILED and task_id in self._failures:
            self._settle(self._failures[task_id], kwargs)
        elif status == DONE:
            self._failures.pop(task_id, None)
        if headline:
            with contextlib.suppress(RPCError, OSError, ValueError):  # luigid is gone: the next request tells
                self._scheduler.set_task_status_message(task_id, html.escape(headline.replace("; ", "\n")))

    def _result(self, task_id: str) -> tuple[str, str | None]:
        """What a finished task has to show, and the address of its page."""
        task: Any = self._scheduled_tasks.get(task_id)
        try:
            return task.headline(), task.page
        except (AttributeError, OSError, PipelineError):  # a task of another plugin, a store that is gone
            return "", None

    def _settle(self, told: Failure, task: dict[str, Any]) -> None:
        """After a failure: keep the scheduler from retrying in vain, or say when it retries."""
        found = self._scheduler.task_search(task_str=task["task_id"])
        disabled = task["task_id"] in found.get(DISABLED, {})
        if told.final or (told.busy and self._leaves) or (told.blameless and disabled):
            # Disabled by its worker, a task can run in the next command; disabled by the scheduler, not for hours.
            self._scheduler.add_task(**task | {"status": DISABLED})
        elif disabled and self._luigid:
            self._luigid.explain_disabled(task["task_id"])
        elif disabled:
            log.info("%s: failed too often ([scheduler] retry_count): giving up", short_name(task["task_id"]))
        elif self._config.keep_alive and not self._stop_requesting_work:
            when = "when luigid allows it" if self._luigid else f"in {scheduler_section().retry_delay:.0f} s"
            log.info("%s: retrying %s ([scheduler] retry_delay)", short_name(task["task_id"]), when)

    def _forgive(self) -> None:
        """A task that another command was running, and has finished meanwhile, is no failure."""
        met = self._met_a_lock or (self._luigid and self._luigid.overtaken)
        if not met and not any(answer["running_tasks"] for answer in self._get_work_response_history):
            return  # the store that may have failed is not asked again
        done = {task for task, status, _ in self._add_task_history if status == DONE}
        for task in {task for task, status, _ in self._add_task_history if status in (PENDING, FAILED)} - done:
            told = self._failures.get(task.task_id)
            if (told is None or told.busy) and self._is_complete(task):
                self._failures.pop(task.task_id, None)
                self._add_task_history.append((task, DONE, False))
                done.add(task)
                if task.task_id == self._first_task:
                    log.info("%s: done by another command", short_name(task.task_id))
        names = {task.task_id for task in done}
        for answer in self._get_work_response_history:  # from which Luigi makes "already running"
            running = answer["running_tasks"] or []
            answer["running_tasks"] = [task for task in running if task["task_id"] not in names]

    def _is_complete(self, task: Any) -> bool:
        with contextlib.suppress(Exception):  # whatever a task of another plugin raises
            return bool(task.complete())
        return False
