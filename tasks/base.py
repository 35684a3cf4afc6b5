"""The one base task of the chain: its parameters, when it is complete, and how it runs its stage.

Imports no MXNet, numpy or matplotlib: a finished chain must be recognised in a third of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import luigi
from luigi.parameter import ParameterVisibility

from pipeline import config as configuration
from pipeline import stage_sync
from pipeline.config import Config
from pipeline.errors import (
    AlreadyRunning,
    ConfigError,
    Interrupted,
    PipelineError,
    from_os_error,
)
from pipeline.files import check_path, expanded
from pipeline.process import parent
from pipeline.process.child import COMMANDS
from pipeline.storage import locks
from pipeline.storage.mirror import default_cache, mirror_at
from pipeline.storage.store import check_url, is_url
from pipeline.workspace import MANIFEST, Workspace, events, run_id, with_generation_seed
from pipeline.workspace.freshness import Chain, shown_source
from tasks import scheduler
from tasks.defaults import (
    BAD_CONFIGURATION,
    ask_for_no_more_work,
    exit_with,
    forked_for_a_task,
    log,
    scheduling,
    take_signals,
    vgg,
)
from tasks.progress import SchedulerVoice, TerminalBar, speak_through_the_command
from tasks.worker import Failure, failure

#: Configurations by path and content, so that a file that is edited while a chain runs does not change the chain.
_loaded: dict[tuple[str, str], Config] = {}


class PluginTask(luigi.Task):
    """Base of all tasks here. One that has no other tasks to wait for does `without_scheduler`, and is tried once."""

    without_scheduler = False

    # None is positional: Luigi's Range tools take the first positional parameter for the date.
    workspace = luigi.Parameter(
        default="",
        positional=False,
        description="the folder or URL that holds data sets and runs, for example /data/vgg or s3://bucket/vgg; "
        "default: [vgg] workspace of luigi.cfg, else artifacts",
    )

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> list[tuple[str, Any]]:
        """Luigi's own, filled in; raises `ConfigError`. The `luigi` command does without a scheduler where it can."""
        if cls.without_scheduler:
            scheduler.do_without(cls.get_task_family())
        try:
            values = dict(super().get_param_values(params, args, kwargs))
            values["workspace"] = expanded(values["workspace"] or vgg().workspace, "--workspace")
            return list(cls.filled_in(values).items())
        except ConfigError:
            exit_with(BAD_CONFIGURATION)
            raise

    @classmethod
    def filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values of the parameters with what was left out, in the same order; raises `ConfigError`."""
        workspace_at(values["workspace"])
        return values

    def on_failure(self, exception: BaseException) -> Failure:
        """The text that the scheduler shows: one line for an expected failure."""
        expected = isinstance(exception, PipelineError)
        text = str(exception) if expected else str(super().on_failure(exception))
        return failure(exception, text, final=self.without_scheduler)


class ChainTask(PluginTask):
    """Parameters that every task of the chain shares.

    `architecture`, `dataset` and `settings` are filled in from the configuration: they tell two configurations
    apart in the scheduler, and are not meant to be given.
    """

    config = luigi.Parameter(
        default="",
        positional=False,
        description="the YAML file of the run, for example config/vgg16-bn.yaml; default: [vgg] config of luigi.cfg, "
        "else config/vgg11.yaml",
    )
    generation = luigi.Parameter(
        default="",
        positional=False,
        description="name for a separate training, e.g. 2026-W48; default: the unnamed run",
    )
    architecture = luigi.Parameter(default="", positional=False, description=argparse.SUPPRESS)
    dataset = luigi.Parameter(default="", positional=False, description=argparse.SUPPRESS)
    settings = luigi.Parameter(
        default="",
        positional=False,
        significant=False,
        visibility=ParameterVisibility.PRIVATE,
        description=argparse.SUPPRESS,  # digest of the whole configuration
    )

    @classmethod
    def filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """With what follows from the configuration."""
        values = super().filled_in(values)
        values["config"] = expanded(values["config"] or vgg().config, "--config")
        check_name("--generation", values["generation"])
        filled = _fill(values)
        for name, value in filled.items():
            if values[name] not in ("", value):
                raise ConfigError(
                    f"{values['config']}: gives {name} {value}, but this task was made for {values[name]}: the "
                    "file was changed since, or --" + name + " was given, which is filled in and not meant to be given"
                )
        return values | filled

    @property
    def chain(self) -> Chain:
        """What this task is about, for the modules of `pipeline`."""
        chain = Chain(workspace_at(self.workspace), configuration_of(self.config, self.settings), self.generation)
        if chain.workspace.mirror:
            chain.workspace.mirror.know([chain])
        return chain


class StageTask(ChainTask):
    """A stage of the chain: one process, one folder, one manifest."""

    stage = ""
    accepts_messages = True
    disable_hard_timeout = None
    gave_up = False
    told_to_stop = False

    def complete(self) -> bool:
        """True when this stage and everything before it is done. Looks at manifests and file sizes only."""
        take_signals()
        with scheduling():
            chain = self.chain
            return chain.complete(self.stage) or (looked_again(chain) and chain.complete(self.stage))

    def output(self) -> luigi.LocalTarget:
        folder = self.chain.folder(self.stage)
        unknown = self.chain.workspace.runs / "data set not known yet" / self.chain.run_id / self.stage
        return luigi.LocalTarget(str((folder or unknown) / MANIFEST))

    @property
    def what(self) -> str:
        """How the stage is called in messages."""
        return self.stage if self.stage == "dataset" else f"{self.stage} {self.chain.run_id}"

    def run(self) -> None:
        """Do the stage's work in its own process, unless another process has just done it."""
        if forked_for_a_task():
            parent.end_with_parent()
            speak_through_the_command()
        chain = self.chain
        try:
            with self._locked(chain) as held:
                stage_sync.refresh(chain)
                reasons = chain.why(self.stage)
                if reasons and stage_sync.publish_finished(chain, self.stage):
                    log.info("%s: was made here before, is published now", self.what)
                    return
                if not reasons:
                    log.info("%s: done meanwhile, nothing to do", self.what)
                    return
                log.info("%s: running: %s", self.what, "; ".join(reasons))
                self._run_stage(chain, held, reasons)
        except Interrupted as error:
            if self.gave_up:
                lost = f"{self.what}: another host took it over, as this one could not be heard"
                raise AlreadyRunning(lost) from error
            if self.told_to_stop:
                ask_for_no_more_work()  # with keep_alive Luigi would take it up again
            raise
        except OSError as error:
            raise from_os_error(error, "use the workspace") from error

    def options(self, chain: Chain) -> dict[str, Any]:
        """What the stage's process is told beyond the chain."""
        return {}

    def launcher(self, chain: Chain) -> list[str]:
        """What is put in front of the command of the stage's process."""
        return []

    def _run_stage(self, chain: Chain, held: list[int], reasons: list[str]) -> None:
        voice, bar = SchedulerVoice(self, vgg().report_seconds), TerminalBar(self.what)
        path = _log_path(chain, self.stage)

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "progress":
                # The dashboard's box is narrow: one fact a line.
                voice.say(event["fraction"], "\n".join([*event["message"].split(", "), f"log: {path}"]))
                bar.say(event)
            elif event["event"] == "note":
                log.info("%s: %s", self.what, event["message"])
                bar.say(event)

        about = {"stage": self.stage, "run": chain.run_id, "generation": chain.generation}
        try:
            options = self.options(chain)
            with recorded(chain.workspace, reasons, **about), stage_sync.at_work(chain, self.stage, options):
                parent.run_stage(
                    self.stage,
                    chain,
                    log=path,
                    on_event=on_event,
                    take_commands=self._commands,
                    launcher=self.launcher(chain),
                    inherit=held,
                    options=options,
                )
        finally:
            voice.close()
            bar.close()

    @contextlib.contextmanager
    def _locked(self, chain: Chain) -> Iterator[list[int]]:
        """Hold the locks of what this stage writes and reads; gives their file descriptors."""
        run, workspace = chain.run(), chain.workspace
        if self.stage == "dataset" or run is None:
            path = workspace.lock(workspace.source_pointer(chain.config.data).stem)
        else:
            path = run.lock(self.stage)
        wait = vgg().overlap == "wait"
        with contextlib.ExitStack() as held:
            own = held.enter_context(locks.hold(path, self.what, wait, log.info, mirror=workspace.mirror))
            if self.stage == "dataset" or run is None:
                yield [own]
            else:
                yield [own, held.enter_context(locks.share(workspace.readers_lock(run.dataset_id), self.what))]

    def _commands(self) -> list[str]:
        """Words for the child out of the scheduler's messages; unknown ones are answered."""
        words: list[str] = []
        messages = getattr(self, "scheduler_messages", None)
        mirror = self.chain.workspace.mirror
        if mirror is not None and mirror.lost and not self.gave_up:
            words.append("stop")  # another host goes on with it
            self.gave_up = True
        while messages is not None and not messages.empty():
            message = messages.get()
            word = str(message.content).strip()
            known = COMMANDS if self.stage == "train" else ("stop",)
            reply = "ok" if word in known else f"unknown message {word!r}; known: {', '.join(known)}"
            with contextlib.suppress(Exception):  # the scheduler may be gone
                message.respond(html.escape(reply, quote=False))  # the dashboard inserts it as HTML
            if word in known:
                words.append(word)
                self.told_to_stop |= word.startswith("stop")
        return words


#: Workspaces in a store, by their address.
_workspaces: dict[str, Workspace] = {}


def workspace_at(address: str) -> Workspace:
    """The workspace in a folder, or in a store when `address` is a URL; raises `ConfigError` for one that cannot be."""
    if not is_url(address):
        folder = Path(address).absolute()
        check_path(folder, "--workspace")
        try:
            folder.exists()
        except OSError as error:  # a name that is too long, for example
            raise ConfigError(f"--workspace {address}: cannot be a folder: {error.strerror}") from None
        return Workspace(folder)
    if address not in _workspaces:
        settings = vgg()
        if not 0 <= settings.patience_seconds <= settings.stale_seconds / 2:
            raise ConfigError(
                f"[vgg] patience_seconds: found {settings.patience_seconds:g}, expected at most half of stale_seconds "
                f"({settings.stale_seconds:g}): a host that waits for the store longer than that could lose its locks"
            )
        cache = Path(expanded(settings.cache, "[vgg] cache")) if settings.cache else default_cache()
        check_path(cache, "[vgg] cache")
        mirror = mirror_at(check_url(address), cache, settings.patience_seconds, settings.stale_seconds)
        _workspaces[address] = Workspace(mirror.root, mirror)
    return _workspaces[address]


def looked_again(*chains: Chain) -> bool:
    """Before a no about a workspace in a store: True when that was looked at anew, as others may have been at work."""
    mirror = chains[0].workspace.mirror
    if mirror is None:
        return False
    if multiprocessing.parent_process() and mirror.process != os.getpid():  # forked by Luigi for one task
        mirror.process, mirror.doubtful_before = os.getpid(), time.monotonic()
    return mirror.know(chains, since=mirror.doubtful_before)


@contextlib.contextmanager
def recorded(workspace: Workspace, reasons: list[str], **about: str) -> Iterator[None]:
    """Tell the event log of the work in this block, how it ends, and end the command rightly when it was stopped."""
    started = time.monotonic()
    events.record(workspace, "started", **about, reasons=reasons)
    try:
        yield
    except BaseException as error:
        outcome = "stopped" if isinstance(error, (KeyboardInterrupt, Interrupted)) else "failed"
        if isinstance(error, parent.Stopped) and error.finished:
            outcome = "finished"
        seconds = round(time.monotonic() - started, 3)
        events.record(workspace, outcome, **about, seconds=seconds, message=str(error))
        events.publish(workspace)
        if isinstance(error, parent.Stopped):
            exit_with(128 + error.signal)
            if forked_for_a_task():  # it ends like any other failure
                raise Interrupted(str(error)) from None
        raise
    events.record(workspace, "finished", **about, seconds=round(time.monotonic() - started, 3))
    events.publish(workspace)


def configuration_of(path: str, settings: str) -> Config:
    """The configuration that a task with these parameters was made for."""
    return _loaded[path, settings]


def launcher_of(config: Config) -> list[str]:
    """The launcher of a training: the one of luigi.cfg or the command line, else the configuration's."""
    given = vgg().launcher
    return list((configuration.with_launcher(config, given, "[vgg] launcher") if given else config).launcher)


def _fill(values: dict[str, Any]) -> dict[str, str]:
    """The filled-in parameters of a configuration, which is loaded unless this process already has it."""
    key = (values["config"], values["settings"])
    config = _loaded.get(key)
    if config is None:
        config = with_generation_seed(configuration.load(values["config"]), values["generation"])
        launcher_of(config)  # a wrong one is refused before anything runs
        key = (values["config"], remember(values["config"], config))
    return {
        "architecture": run_id(config.architecture),
        "dataset": f"{config.data.name} from {shown_source(config.data)}",
        "settings": key[1],
    }


def remember(path: str, config: Config) -> str:
    """Keep a loaded configuration for the tasks of this process; gives their `settings`, which stand for it."""
    text = json.dumps(configuration.to_record(config), sort_keys=True)
    settings = hashlib.sha256(text.encode()).hexdigest()[:16]
    _loaded[path, settings] = config
    return settings


def check_name(flag: str, name: str) -> None:
    """Refuse a name given on the command line that cannot be the name of a folder; empty means not given."""
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(f"{flag}: found {name!r}, allowed are letters, digits, '.', '_' and '-', at most 64 of them")


def _log_path(chain: Chain, stage: str) -> Path:
    run = chain.run()
    if stage == "dataset" or run is None:
        return chain.workspace.downloads / f"{chain.workspace.source_pointer(chain.config.data).stem}.log"
    return run.log(stage)
