"""The configurations of this process, each read once: a file that is edited while a chain runs does not change it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.workspace import run_id, with_generation_seed
from pipeline.workspace.freshness import shown_source
from tasks.settings import vgg

#: By path and digest of the content.
_loaded: dict[tuple[str, str], Config] = {}


def configuration_of(path: str, settings: str) -> Config:
    """The configuration that a task with these parameters was made for."""
    return _loaded[path, settings]


def launcher_of(config: Config) -> list[str]:
    """The launcher of a training: the one of luigi.cfg or the command line, else the configuration's."""
    given = vgg().launcher
    return list((configuration.with_launcher(config, given, "[vgg] launcher") if given else config).launcher)


def describe(values: dict[str, Any]) -> dict[str, str]:
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
    text = json.dumps({**configuration.to_record(config), "launcher": config.launcher}, sort_keys=True)
    settings = hashlib.sha256(text.encode()).hexdigest()[:16]
    _loaded[path, settings] = config
    return settings


def check_name(flag: str, name: str) -> None:
    """Refuse a name given on the command line that cannot be the name of a folder; empty means not given."""
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(f"{flag}: found {name!r}, allowed are letters, digits, '.', '_' and '-', at most 64 of them")
