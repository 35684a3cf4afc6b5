"""A stage as a Luigi task: when it is complete, and how its process is run, watched, talked to and recorded."""

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
from pipeline.process.child import COMMANDS
from pipeline.storage import locks
from pipeline.workspace import MANIFEST, Workspace, events
from pipeline.workspace.freshness import Chain, refresh
from tasks.base import ChainTask
from tasks.exit_codes import exit_with, is_command
from tasks.log import log
from tasks.progress import Progress
from tasks.results import StoredFile, target
from tasks.settings import vgg
from tasks.signals import ask_for_no_more_work, forked_for_a_task, take_signals
from tasks.workspaces import looked_again


class StageTask(ChainTask):
    """A stage of the chain: one process, one folder, one manifest."""

    stage = ""
    accepts_messages = True
    #: The stages that this command runs after this one, and whose processes can be started early.
    next_stages = frozenset[str]()
    gave_up = False
    told_to_stop = False

    def complete(self) -> bool:
        """True when this stage and everything before it is done. Looks at manifests and file sizes only."""
        with checking():
            chain = self.chain
            return chain.complete(self.stage) or (looked_again(chain) and chain.complete(self.stage))

    def output(self) -> luigi.LocalTarget | StoredFile:
        chain = self.chain
        folder = chain.folder(self.stage)
        unknown = chain.workspace.runs / "data set not known yet" / chain.run_id / self.stage
        return target(chain.workspace, (folder or unknown) / MANIFEST)

    @property
    def what(self) -> str:
        """How the stage is called in messages."""
        return self.stage if self.stage == "dataset" else f"{self.stage} {self.run_id}"

    def run(self) -> None:
        """Do the stage's work in its own process, unless another process has just done it."""
        chain, began = self.chain, False
        self.gave_up = self.told_to_stop = False  # of an attempt before
        try:
            with working(), self._locked(chain) as held:
                refresh([chain], since=time.monotonic())
                reasons = chain.why(self.stage)
                if reasons and stage_sync.publish_finished(chain, self.stage):
                    log.info("%s: publishing the result that was made here earlier", self.what)
                    return
                if not reasons:
                    log.info("%s: nothing left to do", self.what)
                    return
                began = True
                self._run_stage(chain, held, reasons)
        except Interrupted as error:
            if self.gave_up:
                lost = f"{self.what}: taken over by another host, because this one lost touch with the store"
                raise AlreadyRunning(lost) from error
            if self.told_to_stop:
                ask_for_no_more_work()  # with keep_alive Luigi would take it up again
            raise
        finally:
            if began:
                self.announce(chain)

    @property
    def messages(self) -> tuple[str, ...]:
        """What may be sent to the running stage from luigid's page."""
        return COMMANDS if self.stage == "train" else ("stop",)

    def announce(self, chain: Chain) -> None:
        """Tell the operator what came of the work, where that is news, also after an error. The locks are free."""

    def options(self, chain: Chain) -> dict[str, Any]:
        """What the stage's process is told beyond the chain."""
        return {}

    def launcher(self, chain: Chain) -> list[str]:
        """What is put in front of the command of the stage's process."""
        return []

    def turn(self, chain: Chain, waiting: Callable[[str], None]) -> AbstractContextManager[list[int]]:
        """Waits until the stage may start; gives file descriptors that its process has to inherit."""
        return contextlib.nullcontext([])

    def _run_stage(self, chain: Chain, held: list[int], reasons: list[str]) -> None:
        path = _log_path(chain, self.stage)
        about = {"stage": self.stage, "run": chain.run_id, "generation": chain.generation}

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "finishing":
                self._start_next_early(chain)
                return
            if event["event"] != "progress":
                log.info("%s: %s", self.what, event["message"])
            progress.show(event)

        def wait(line: str) -> None:
            message = f"{line}, which trains on all cores; a lower OMP_NUM_THREADS lets trainings share them"
            on_event({"event": "note", "message": message.removeprefix(f"{self.what}: ")})
            if is_command() and chain.config.distributed.workers == 1:
                parent.start_early(self.stage, chain)  # with its imports done, it begins as soon as its turn comes

        with Progress(self, path, self.messages) as progress:
            options = self.options(chain)
            if self.stage != "train":  # which has no core to spare until it is finishing
                self._start_next_early(chain)
            with self.turn(chain, self._waiting(wait)) as turn:
                progress.note = ""
                log.info("%s: running: %s", self.what, "; ".join(reasons))
                with recorded(chain.workspace, reasons, **about), stage_sync.synced(chain, self.stage, options):
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
        if is_command() and not forked_for_a_task():
            for stage in self.next_stages:
                parent.start_early(stage, chain)

    @contextlib.contextmanager
    def _locked(self, chain: Chain) -> Iterator[list[int]]:
        """Hold the locks of what this stage writes and reads; gives their file descriptors."""
        workspace, run = chain.workspace, None if self.stage == "dataset" else chain.run()
        path = run.lock(self.stage) if run else workspace.lock(workspace.source_pointer(chain.config.data).stem)
        wait = vgg().overlap == "wait"
        with contextlib.ExitStack() as held:
            descriptors = [held.enter_context(workspace.hold(path, self.what, wait, self._waiting(log.info)))]
            if run:
                readers = workspace.readers_lock(run.dataset_id)
                descriptors.append(held.enter_context(locks.share(readers, self.what)))
            yield descriptors

    def _waiting(self, tell: Callable[[str], None]) -> Callable[[str], None]:
        """What to do at every look at a lock that is waited for: tell who has it, once, and hear a request to stop."""
        once = functools.cache(tell)

        def look(line: str) -> None:
            once(line)
            if any(word.startswith("stop") for word in self._commands()):
                raise Interrupted(f"{self.what}: stopped while it was waiting; run the same command again")

        return look

    def _commands(self) -> list[str]:
        """Words for the child out of the scheduler's messages; unknown ones are answered."""
        words: list[str] = []
        messages = getattr(self, "scheduler_messages", None)
        if self.chain.workspace.storage.lock_lost and not self.gave_up:
            words.append("stop")  # another host goes on with it
            self.gave_up = True
        while messages is not None and not messages.empty():
            message = messages.get()
            word = str(message.content).strip()
            known = word in self.messages
            reply = "ok" if known else f"unknown message {word!r}; known: {', '.join(self.messages)}"
            with contextlib.suppress(Exception):  # the scheduler may be gone
                message.respond(html.escape(reply, quote=False))  # the dashboard inserts it as HTML
            if known:
                words.append(word)
                self.told_to_stop |= word.startswith("stop")
        return words


@StageTask.event_handler("event.core.dependency.discovered")
def _remember_what_follows(task: StageTask, before: luigi.Task) -> None:
    chain = task.chain
    elsewhere = task.launcher(chain) or chain.config.distributed.workers > 1
    if isinstance(before, StageTask) and not elsewhere:
        before.next_stages |= {task.stage}


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """Around a task's `complete`: a signal ends the command in order, an `OSError` becomes an expected error."""
    take_signals()
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "look at the workspace") from error


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Around a task's `run`: a forked process ends with the command, an `OSError` becomes an expected error."""
    if forked_for_a_task():
        parent.end_with_parent()
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "use the workspace") from error


@contextlib.contextmanager
def recorded(workspace: Workspace, reasons: list[str], **about: str) -> Iterator[None]:
    """Tell the event log of the work in this block, how it ends, and end the command rightly when it was stopped."""
    started, outcome, message = time.monotonic(), "finished", {}
    events.record(workspace, "started", **about, reasons=reasons)
    try:
        yield
    except BaseException as error:
        message = {"message": str(error)}
        if not (isinstance(error, parent.Stopped) and error.finished):
            outcome = "stopped" if isinstance(error, (KeyboardInterrupt, Interrupted)) else "failed"
        if isinstance(error, parent.Stopped):
            if forked_for_a_task():  # it ends like any other failure; the command has its own signal, if it was stopped
                raise Interrupted(str(error)) from None
            exit_with(128 + error.signal)
        raise
    finally:
        events.record(workspace, outcome, **about, seconds=round(time.monotonic() - started, 3), **message)
        events.publish(workspace)


def _log_path(chain: Chain, stage: str) -> Path:
    run = None if stage == "dataset" else chain.run()
    source = chain.workspace.source_pointer(chain.config.data)
    return run.log(stage) if run else chain.workspace.downloads / f"{source.stem}.log"
