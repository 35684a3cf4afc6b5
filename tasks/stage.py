"""Base class of the stage tasks: completeness, and running, monitoring and messaging a stage's process."""

from __future__ import annotations

import contextlib
import functools
import html
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import luigi

from pipeline import stage_sync
from pipeline.errors import AlreadyRunning, Interrupted, from_os_error
from pipeline.process import parent
from pipeline.process.reporter import COMMANDS
from pipeline.storage import locks
from pipeline.workspace import MANIFEST, Workspace, events
from pipeline.workspace.freshness import Chain, refresh
from tasks.base import ChainTask
from tasks.exit_codes import is_command, request_exit_code
from tasks.log import log
from tasks.progress import Progress
from tasks.results import StoredFile, target
from tasks.settings import vgg
from tasks.signals import end_with_command, in_task_process, install_signal_handlers, stop_requesting_work
from tasks.workspaces import refresh_if_stale, workspace_at


class StageTask(ChainTask):
    """A stage of the chain: one child process, one folder, one manifest."""

    stage = ""
    accepts_messages = True
    #: Stages that this command runs directly after this one and may start early.
    next_stages = frozenset[str]()
    lost_locks = False
    stop_requested = False

    def complete(self) -> bool:
        """Whether this stage and everything before it is done. Checks only manifests and file sizes."""
        with checking():
            chain = self.chain
            return chain.complete(self.stage) or (refresh_if_stale(chain) and chain.complete(self.stage))

    def output(self) -> luigi.LocalTarget | StoredFile:
        chain = self.chain
        folder = chain.folder(self.stage)
        unknown = chain.workspace.runs / "data set not known yet" / chain.run_id / self.stage
        return target(chain.workspace, (folder or unknown) / MANIFEST)

    @property
    def display_name(self) -> str:
        return self.stage if self.stage == "dataset" else f"{self.stage} {self.run_id}"

    def run(self) -> None:
        """Run the stage in a child process, unless another command has just finished it."""
        chain, started = self.chain, False
        self.lost_locks = self.stop_requested = False  # may be set by an earlier attempt
        try:
            with working(), self._locked(chain) as held:
                refresh([chain], since=time.monotonic())
                reasons = chain.why(self.stage)
                if reasons and stage_sync.publish_finished(chain, self.stage):
                    log.info("%s: publishing the result of an earlier run on this host", self.display_name)
                    return
                if not reasons:
                    log.info("%s: nothing left to do", self.display_name)
                    return
                started = True
                self._run_stage(chain, held, reasons)
        except Interrupted as error:
            if self.lost_locks:
                raise AlreadyRunning(
                    f"{self.display_name}: taken over by another host, because this one lost contact with the store"
                ) from error
            if self.stop_requested:
                stop_requesting_work()  # with keep_alive, Luigi would restart the task
            raise
        finally:
            if started:
                self.notify_outcome(chain)

    @property
    def messages(self) -> tuple[str, ...]:
        """Messages that the running stage accepts from luigid's page."""
        return COMMANDS if self.stage == "train" else ("stop",)

    def notify_outcome(self, chain: Chain) -> None:
        """Hook for notifying the operator once the stage has run, successfully or not. Its locks are released."""

    def options(self, chain: Chain) -> dict[str, Any]:
        """Options for the stage's process, in addition to the chain."""
        return {}

    def launcher(self, chain: Chain) -> list[str]:
        """Command-line prefix for the stage's process."""
        return []

    def turn(self, chain: Chain, on_wait: Callable[[str], None]) -> AbstractContextManager[list[int]]:
        """Wait until the stage may start. Yields file descriptors for its process to inherit."""
        return contextlib.nullcontext([])

    def _run_stage(self, chain: Chain, held: list[int], reasons: list[str]) -> None:
        path = _log_path(chain, self.stage)
        fields = {"stage": self.stage, "run": chain.run_id, "generation": chain.generation}

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "finishing":
                self._start_next_early(chain)
                return
            if event["event"] != "progress":
                log.info("%s: %s", self.display_name, event["message"])
            progress.show(event)

        def wait(line: str) -> None:
            message = f"{line}, which trains on all cores; a lower OMP_NUM_THREADS lets trainings share them"
            on_event({"event": "note", "message": message.removeprefix(f"{self.display_name}: ")})
            if is_command() and chain.config.distributed.workers == 1:
                parent.start_early(self.stage, chain)  # does its imports while it waits

        with Progress(self, path, self.messages) as progress:
            options = self.options(chain)
            if self.stage != "train":  # a training needs all cores until it is finishing
                self._start_next_early(chain)
            with self.turn(chain, self._on_wait(wait)) as turn:
                progress.note = ""
                log.info("%s: running: %s", self.display_name, "; ".join(reasons))
                with recorded(chain.workspace, reasons, **fields), stage_sync.synced(chain, self.stage, options):
                    parent.run_stage(
                        self.stage,
                        chain,
                        log=path,
                        on_event=on_event,
                        take_commands=self._commands,
                        launcher=self.launcher(chain),
                        inherit=[*held, *turn],
                        options=options,
                    )

    def _start_next_early(self, chain: Chain) -> None:
        if is_command() and not in_task_process():
            for stage in self.next_stages:
                parent.start_early(stage, chain)

    @contextlib.contextmanager
    def _locked(self, chain: Chain) -> Iterator[list[int]]:
        """Hold the locks on what this stage writes and reads. Yields their file descriptors."""
        workspace, run = chain.workspace, None if self.stage == "dataset" else chain.run()
        path = run.lock(self.stage) if run else workspace.lock(workspace.source_pointer(chain.config.data).stem)
        wait = vgg().overlap == "wait"
        with contextlib.ExitStack() as held:
            descriptors = [held.enter_context(workspace.hold(path, self.display_name, wait, self._on_wait(log.info)))]
            if run:
                readers = workspace.readers_lock(run.dataset_id)
                descriptors.append(held.enter_context(locks.share(readers, self.display_name)))
            yield descriptors

    def _on_wait(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """Callback for polling a held lock: reports the holder once, and raises `Interrupted` on a stop message."""
        report_once = functools.cache(report)

        def poll(line: str) -> None:
            report_once(line)
            if any(word.startswith("stop") for word in self._commands()):
                raise Interrupted(f"{self.display_name}: stopped while waiting; run the same command again")

        return poll

    def _commands(self) -> list[str]:
        """Receive the scheduler's messages, reply to each, and return the commands for the child process."""
        words: list[str] = []
        messages = getattr(self, "scheduler_messages", None)
        if workspace_at(self.workspace).storage.lock_lost and not self.lost_locks:
            words.append("stop")  # another host has taken over
            self.lost_locks = True
        while messages is not None and not messages.empty():
            message = messages.get()
            word = str(message.content).strip()
            known = word in self.messages
            reply = "ok" if known else f"unknown message {word!r}; known: {', '.join(self.messages)}"
            with contextlib.suppress(Exception):  # the scheduler may be gone
                message.respond(html.escape(reply, quote=False))  # the dashboard inserts it as HTML
            if known:
                words.append(word)
                self.stop_requested |= word.startswith("stop")
        return words


@StageTask.event_handler("event.core.dependency.discovered")
def _record_next_stage(task: StageTask, dependency: luigi.Task) -> None:
    chain = task.chain
    elsewhere = task.stage == "train" and (task.launcher(chain) or chain.config.distributed.workers > 1)
    if isinstance(dependency, StageTask) and not elsewhere:
        dependency.next_stages |= {task.stage}


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """Context of a task's `complete`: handle signals, and turn an `OSError` into an expected error."""
    install_signal_handlers()
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "read the workspace") from error


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Context of a task's `run`: end with the command that forked us, and turn an `OSError` into an expected error."""
    end_with_command()
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "use the workspace") from error


@contextlib.contextmanager
def recorded(workspace: Workspace, reasons: list[str], **fields: str) -> Iterator[None]:
    """Record the start and outcome of this block in the event log. If stopped by a signal, request its exit code."""
    started, outcome, message = time.monotonic(), "finished", {}
    events.record(workspace, "started", **fields, reasons=reasons)
    try:
        yield
    except BaseException as error:
        message = {"message": str(error)}
        if not (isinstance(error, parent.Stopped) and error.finished):
            outcome = "stopped" if isinstance(error, (KeyboardInterrupt, Interrupted)) else "failed"
        if isinstance(error, parent.Stopped):
            if in_task_process():  # an ordinary failure; if the command was stopped, it has its own signal
                raise Interrupted(str(error)) from None
            request_exit_code(128 + error.signal)
        raise
    finally:
        events.record(workspace, outcome, **fields, seconds=round(time.monotonic() - started, 3), **message)
        events.publish(workspace)


def _log_path(chain: Chain, stage: str) -> Path:
    run = None if stage == "dataset" else chain.run()
    source = chain.workspace.source_pointer(chain.config.data)
    return run.log(stage) if run else chain.workspace.downloads / f"{source.stem}.log"
