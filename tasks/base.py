"""Base classes: `PluginTask` adds `--workspace`; `ChainTask` adds `--config` and `--generation`."""

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
from tasks.configurations import (
    check_name,
    configurations_of,
    derived_parameters,
    loaded_config,
    register_config,
    settings_of,
)
from tasks.exit_codes import BAD_CONFIGURATION, request_exit_code
from tasks.log import log
from tasks.settings import vgg
from tasks.worker import Failure, failure
from tasks.workspaces import workspace_at


class PluginTask(luigi.Task):
    """Base of all tasks of this plugin."""

    #: Set by tasks that depend on no others: the `luigi` command runs them without luigid and does not retry them.
    without_scheduler = False

    # No parameter is positional: Luigi's Range tools take the first positional one for the date.
    workspace = luigi.Parameter(
        default="",
        positional=False,
        description="folder or URL for data sets and runs, e.g. /data/vgg or s3://bucket/vgg; "
        "default: [vgg] workspace of luigi.cfg, else artifacts",
    )

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> list[tuple[str, Any]]:
        """Resolve defaults and derived values before Luigi makes the task. Raises `ConfigError`."""
        if cls.without_scheduler:
            scheduler.skip_scheduler(cls.get_task_family())
        try:
            refuse_old_names(name for name in OLD_NAMES if get_config().has_option("vgg", name))
            values = dict(super().get_param_values(params, args, kwargs))
            values["workspace"] = expanded(values["workspace"] or vgg().workspace, "--workspace")
            return list(cls.resolve(values).items())
        except ConfigError:
            request_exit_code(BAD_CONFIGURATION)
            raise

    @classmethod
    def resolve(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Validate parameter values and fill in what was omitted, keeping their order. Raises `ConfigError`."""
        workspace_at(values["workspace"])
        url = vgg().workspace_url
        if url and not url.startswith(("http://", "https://")):
            raise ConfigError(f"[vgg] workspace_url: found {address.shown(url)}, expected http://… or https://…")
        return values

    @property
    def display_name(self) -> str:
        """The task's name in messages."""
        return self.task_family

    @property
    def notification_fields(self) -> dict[str, Any]:
        """Fields that identify the task in a notification."""
        workspace = workspace_at(self.workspace)
        return {"workspace": workspace.shown(workspace.root)}

    def headline(self) -> str:
        """The result of the finished task, in one line."""
        return ""

    @property
    def page(self) -> str | None:
        """URL of the finished task's page; None without `[vgg] workspace_url`."""
        return None

    def on_failure(self, exception: BaseException) -> Failure:
        """Return the text for the scheduler (one line if the failure is expected) and notify the operator."""
        expected = isinstance(exception, PipelineError)
        text = str(exception) if expected else str(super().on_failure(exception))
        result = failure(exception, text, final=self.without_scheduler)
        if not result.benign:
            notification.notify_failure(self, result)
        return result


def log_results(kind: type[PluginTask]) -> None:
    """Log the headline of each task of a kind, whether this command ran it or found it complete."""
    for event, prefix in (("event.core.success", ""), ("event.core.dependency.present", "up to date; ")):

        @kind.event_handler(event)
        def log_headline(task: PluginTask, prefix: str = prefix) -> None:
            log.info("%s: %s%s", task.display_name, prefix, task.headline())


class ChainTask(PluginTask):
    """Base of all tasks that work on one chain."""

    #: Set by tasks that reject `--generation`: the option to use instead.
    instead_of_generation = ""

    config = luigi.Parameter(
        default="",
        positional=False,
        description="YAML file of the run, e.g. config/vgg16-bn.yaml; default: [vgg] config of luigi.cfg, "
        "else config/vgg11.yaml",
    )
    generation = luigi.Parameter(
        default="",
        positional=False,
        description="name of a separate training, e.g. 2026-W48; default: the unnamed run; for Retrain: the period",
    )
    # Derived from the configuration, so that the scheduler can tell two of them apart. Not meant to be set by hand.
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
    def resolve(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().resolve(values)
        values["config"] = expanded(values["config"] or vgg().config, "--config")
        values["generation"] = values["generation"] or ""
        if cls.instead_of_generation and values["generation"]:
            raise ConfigError(
                f"--generation: found {values['generation']}, but {cls.__name__} takes {cls.instead_of_generation}"
            )
        check_name("--generation", values["generation"])
        derived = derived_parameters(values)
        for name, value in derived.items():
            if values[name] not in ("", value):
                raise ConfigError(
                    f"{values['config']}: {name} is {value}, but this task has {values[name]}: the file has changed, "
                    f"or {name} was set by hand, or by `clone` from a task with this parameter (the file determines it)"
                )
        return values | derived

    def clone(self, cls: Any = None, **kwargs: Any) -> Any:
        """Like Luigi's; what follows from `config` or `generation`, such as the seed, changes with them."""
        derived = {}
        if "config" in kwargs:
            derived = {"architecture": "", "dataset": "", "settings": ""}
        elif "generation" in kwargs:
            derived = {"settings": settings_of(self.config, self.settings, kwargs["generation"] or "")}
        return super().clone(cls, **derived | kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the configuration, too: another process has not loaded it."""
        return {**self.__dict__, "_configurations": configurations_of(self.config, self.settings)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        configurations = state.pop("_configurations")
        self.__dict__.update(state)
        register_config(self.config, *configurations)

    @property
    def notification_fields(self) -> dict[str, Any]:
        return {**super().notification_fields, "config": self.config, "run": self.run_id, "generation": self.generation}

    @property
    def chain(self) -> Chain:
        """The chain that this task works on, with a fresh view of its store."""
        chain = self._unrefreshed_chain()
        refresh([chain])
        return chain

    @property
    def run_id(self) -> str:
        """The run's name. Does not query the store, which may be what failed."""
        return self._unrefreshed_chain().run_id

    def _unrefreshed_chain(self) -> Chain:
        return Chain(workspace_at(self.workspace), loaded_config(self.config, self.settings), self.generation)
