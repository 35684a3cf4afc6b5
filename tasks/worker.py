"""Luigi's worker with better retries: it does not retry what cannot succeed, and logs when the next retry is due.

Used with luigid and with --local-scheduler. The exit code reflects each task's last attempt: a task that first found
another command's lock and succeeded later did not fail.
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
from tasks.exit_codes import OVERRIDABLE, request_exit_code, requested_exit_code, return_code
from tasks.log import log
from tasks.scheduler_client import LuigidClient, short_name
from tasks.settings import vgg


class Failure(str):
    """Return value of `on_failure`: the text that Luigi passes to worker and scheduler, and how to handle it."""

    final = False  # do not retry: it would fail again in the same way
    benign = False  # another command had the lock, or somebody stopped the task
    busy = False  # another command had the lock


def failure(exception: BaseException, text: str, final: bool = False) -> Failure:
    """Classify an exception raised by a task. `final` rules out retries whatever the exception is."""
    result = Failure(text)
    result.busy = isinstance(exception, AlreadyRunning)
    result.final = final or (isinstance(exception, PipelineError) and not exception.retryable)
    result.benign = isinstance(exception, (AlreadyRunning, Interrupted))
    return result


class Worker(luigi.worker.Worker):
    """Luigi's worker with the retry policy and exit codes of this plugin."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failures: dict[str, Failure] = {}  # of tasks whose last attempt failed
        self._luigid = self._scheduler if isinstance(self._scheduler, LuigidClient) else None
        if self._luigid:
            self._luigid.is_complete = lambda task_id: self._is_complete(self._scheduled_tasks[task_id])

    def run(self) -> bool:
        done = super().run()
        self._clear_resolved_failures()
        busy = {task_id for task_id, failure in self._failures.items() if failure.busy}
        blocked = self._luigid and self._luigid.blocked
        overridable = requested_exit_code() in OVERRIDABLE
        if busy or blocked or overridable:
            summary = execution_summary._summary_dict(self)
            categories = {  # as in Luigi, except that a task which another command is doing has not failed
                "already_running": not overridable and (busy or blocked or summary["run_by_other_worker"]),
                "missing_data": summary["still_pending_ext"],
                "not_run": summary["not_run"] and not blocked,
                "task_failed": {task.task_id for task in summary["failed"]} - busy,
                "scheduling_error": summary["scheduling_error"],
            }
            code = max((return_code(category) for category, applies in categories.items() if applies), default=0)
            if code or not overridable:
                request_exit_code(code)
        return done

    def _keep_alive(self, get_work_response: Any) -> bool:
        taken = self._hit_a_lock or (self._luigid and self._luigid.taken)
        return super()._keep_alive(get_work_response) and not (taken and self._gives_way)

    @property
    def _hit_a_lock(self) -> bool:
        return any(failure.busy for failure in self._failures.values())

    @property
    def _gives_way(self) -> bool:
        """Whether to leave work to another command that is doing it. Several trainings are shared instead."""
        trainings = [task for task in self._scheduled_tasks.values() if task.task_family == "TrainVGG"]
        return vgg().overlap == "leave" and len(trainings) < 2

    def _email_task_failure(self, task: Any, formatted_traceback: Any) -> None:
        # Luigi calls this for each failure with the unchanged return value of `on_failure`.
        failure = formatted_traceback
        if not isinstance(failure, Failure):  # the task's process died without reporting
            failure = Failure(failure)
            notification.notify_failure(task, failure)
        self._failures[task.task_id] = failure
        if not failure.benign:
            super()._email_task_failure(task, failure)

    def _announce_scheduling_failure(self, task: Any, expl: str) -> None:
        notification.notify_failure(task, expl)
        super()._announce_scheduling_failure(task, notification.without_traceback(expl))  # for luigid's own e-mails

    def _email_error(self, task: Any, formatted_traceback: str, subject: str, headline: str) -> None:
        notification.send_email(task, formatted_traceback)  # Luigi's own e-mail ends with the cause

    def _add_task(self, *args: Any, **kwargs: Any) -> None:
        task_id, status = kwargs["task_id"], kwargs["status"]
        headline = ""
        if status == DONE:  # on a running task, a URL would reset its resources and `accepts_messages`
            headline, kwargs["tracking_url"] = self._result(task_id)
        super()._add_task(*args, **kwargs)
        if status == FAILED and task_id in self._failures:
            self._handle_failure(self._failures[task_id], kwargs)
        elif status == DONE:
            self._failures.pop(task_id, None)
        if headline:
            with contextlib.suppress(RPCError, OSError, ValueError):  # luigid is gone: the next request reports it
                self._scheduler.set_task_status_message(task_id, html.escape(headline.replace("; ", "\n")))

    def _result(self, task_id: str) -> tuple[str, str | None]:
        task: Any = self._scheduled_tasks.get(task_id)
        try:
            return task.headline(), task.page
        except (AttributeError, OSError, PipelineError):  # another plugin's task, an unreachable store
            return "", None

    def _handle_failure(self, failure: Failure, task: dict[str, Any]) -> None:
        """Keep the scheduler from retrying a task in vain, or log when it retries."""
        by_status = self._scheduler.task_search(task_str=task["task_id"])
        disabled = task["task_id"] in by_status.get(DISABLED, {})
        if failure.final or (failure.busy and self._gives_way) or (failure.benign and disabled):
            # A task disabled by its worker can run in the next command; disabled by the scheduler, not for hours.
            self._scheduler.add_task(**task | {"status": DISABLED})
        elif disabled and self._luigid:
            self._luigid.explain_disabled(task["task_id"])
        elif disabled:
            log.info("%s: failed too often ([scheduler] retry_count): giving up", short_name(task["task_id"]))
        elif self._config.keep_alive and not self._stop_requesting_work:
            when = "when luigid allows it" if self._luigid else f"in {scheduler_section().retry_delay:.0f} s"
            log.info("%s: retrying %s ([scheduler] retry_delay)", short_name(task["task_id"]), when)

    def _clear_resolved_failures(self) -> None:
        """Drop failures of tasks that another command was running and has since finished."""
        met_other = self._hit_a_lock or (self._luigid and self._luigid.done_elsewhere)
        if not met_other and not any(response["running_tasks"] for response in self._get_work_response_history):
            return  # do not query the store: it may be what failed
        done = {task for task, status, _ in self._add_task_history if status == DONE}
        for task in {task for task, status, _ in self._add_task_history if status in (PENDING, FAILED)} - done:
            failure = self._failures.get(task.task_id)
            if (failure is None or failure.busy) and self._is_complete(task):
                self._failures.pop(task.task_id, None)
                self._add_task_history.append((task, DONE, False))
                done.add(task)
                if task.task_id == self._first_task:
                    log.info("%s: done by another command", short_name(task.task_id))
        done_ids = {task.task_id for task in done}
        for response in self._get_work_response_history:  # from this, Luigi derives "already running"
            running = response["running_tasks"] or []
            response["running_tasks"] = [task for task in running if task["task_id"] not in done_ids]

    def _is_complete(self, task: Any) -> bool:
        with contextlib.suppress(Exception):  # another plugin's task may raise anything
            return bool(task.complete())
        return False
