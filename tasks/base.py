"""Parameters: `--workspace` of every task, `--config` and `--generation` of those of one chain, and their defaults."""

from __future__ import annotations

import argparse
from typing import Any

import luigi
from luigi.configuration import get_config
from luigi.parameter import ParameterVisibility

from pipeline import address
from pipeline.config.settings import OLD_NAMES, refuse_old_names
from pipeline.errors import ConfigError, PipelineError
from pipeline.files import expanded
from pipeline.workspace.freshness import Chain, refresh
from tasks import notification, scheduler
from tasks.configurations import check_name, configuration_of, describe
from tasks.exit_codes import BAD_CONFIGURATION, exit_with
from tasks.log import log
from tasks.settings import vgg
from tasks.worker import Failure, failure
from tasks.workspaces import workspace_at


class PluginTask(luigi.Task):
    """Base of all tasks here. One that has no other tasks to wait for does `without_scheduler`, and is tried once."""

    without_scheduler = False

    # None is positional: Luigi's Range tools take the first positional parameter for the date.
    workspace = luigi.Parameter(
        default="",
        positional=False,
        description="the folder or URL that holds data sets and runs, e.g. /data/vgg or s3://bucket/vgg; "
        "default: [vgg] workspace of luigi.cfg, else artifacts",
    )

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> list[tuple[str, Any]]:
        """Luigi's own, filled in; raises `ConfigError`. The `luigi` command does without a scheduler where it can."""
        if cls.without_scheduler:
            scheduler.do_without(cls.get_task_family())
        try:
            refuse_old_names(name for name in OLD_NAMES if get_config().has_option("vgg", name))
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
        url = vgg().workspace_url
        if url and not url.startswith(("http://", "https://")):
            raise ConfigError(f"[vgg] workspace_url: found {address.shown(url)}, expected http://… or https://…")
        return values

    @property
    def what(self) -> str:
        """How the task is called in messages."""
        return self.task_family

    @property
    def about(self) -> dict[str, Any]:
        """What a notification says of the task."""
        workspace = workspace_at(self.workspace)
        return {"workspace": workspace.shown(workspace.root)}

    def headline(self) -> str:
        """The result in a line, from what the finished task made."""
        return ""

    @property
    def page(self) -> str | None:
        """The address of the finished task's page, if a web server shows it."""
        return None

    def on_failure(self, exception: BaseException) -> Failure:
        """The text that the scheduler shows: one line for an expected failure."""
        expected = isinstance(exception, PipelineError)
        text = str(exception) if expected else str(super().on_failure(exception))
        told = failure(exception, text, final=self.without_scheduler)
        if not told.blameless:
            notification.failed(self, told)
        return told


def tell_results(kind: type[PluginTask]) -> None:
    """Log what came of each task of a kind, whether this command did it or found it done."""
    for event, how in (("event.core.success", ""), ("event.core.dependency.present", "up to date; ")):
        kind.event_handler(event)(lambda task, how=how: log.info("%s: %s%s", task.what, how, task.headline()))


class ChainTask(PluginTask):
    """Parameters that every task of the chain shares.

    `architecture`, `dataset` and `settings` are filled in from the configuration: they tell two configurations
    apart in the scheduler, and are not meant to be given.
    """

    #: What a task that is about no single generation takes in place of `--generation`.
    instead = ""

    config = luigi.Parameter(
        default="",
        positional=False,
        description="the YAML file of the run, e.g. config/vgg16-bn.yaml; default: [vgg] config of luigi.cfg, "
        "else config/vgg11.yaml",
    )
    generation = luigi.Parameter(
        default="",
        positional=False,
        description="name for a separate training, e.g. 2026-W48; default: the unnamed run; Retrain: the period's",
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
        if cls.instead and values["generation"]:
            raise ConfigError(f"--generation: found {values['generation']}, but {cls.__name__} takes {cls.instead}")
        check_name("--generation", values["generation"])
        filled = describe(values)
        for name, value in filled.items():
            if values[name] not in ("", value):
                raise ConfigError(
                    f"{values['config']}: {name} is {value}, but this task has {values[name]}: the file has changed, "
                    f"or --{name} was given, which is read from the file"
                )
        return values | filled

    @property
    def about(self) -> dict[str, Any]:
        return {**super().about, "config": self.config, "run": self.run_id, "generation": self.generation}

    @property
    def chain(self) -> Chain:
        """What this task is about, for the modules of `pipeline`."""
        chain = self._chain_as_known()
        refresh([chain])
        return chain

    @property
    def run_id(self) -> str:
        """The name of the run, without a question to its store, which may be what failed."""
        return self._chain_as_known().run_id

    def _chain_as_known(self) -> Chain:
        return Chain(workspace_at(self.workspace), configuration_of(self.config, self.settings), self.generation)
