"""Configurations loaded by this process. Each file is read once: editing it does not affect a running chain."""

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

#: By path and digest of the loaded configuration.
_loaded: dict[tuple[str, str], Config] = {}

#: The same with the file's own seed, whatever the generation.
_unseeded: dict[tuple[str, str], Config] = {}


def loaded_config(path: str, settings: str) -> Config:
    """The configuration behind a task's `config` and `settings`."""
    return _loaded[path, settings]


def launcher_of(config: Config) -> list[str]:
    """The launcher for a training: `[vgg] launcher` or `--vgg-launcher` if set, else the configuration's."""
    given = vgg().launcher
    return list((configuration.with_launcher(config, given, "[vgg] launcher") if given else config).launcher)


def derived_parameters(values: dict[str, Any]) -> dict[str, str]:
    """Derive a task's internal parameters from its configuration, loading the file on first use."""
    path, settings = values["config"], values["settings"]
    config = _loaded.get((path, settings))
    if config is None:
        unseeded = configuration.load(path)
        launcher_of(unseeded)  # validates it before anything runs
        config = with_generation_seed(unseeded, values["generation"])
        settings = register_config(path, config, unseeded)
    return {
        "architecture": run_id(config.architecture),
        "dataset": f"{config.data.name} from {shown_source(config.data)}",
        "settings": settings,
    }


def settings_of(path: str, settings: str, generation: str) -> str:
    """The `settings` of another generation of the configuration behind a task's `config` and `settings`."""
    unseeded = _unseeded[path, settings]
    return register_config(path, with_generation_seed(unseeded, generation), unseeded)


def configurations_of(path: str, settings: str) -> tuple[Config, Config]:
    """The arguments with which `register_config` makes a task usable in another process."""
    return _loaded[path, settings], _unseeded[path, settings]


def register_config(path: str, config: Config, unseeded: Config | None = None) -> str:
    """Keep a loaded configuration for the tasks of this process. Returns its digest, their `settings`.

    `unseeded` is the same with the file's own seed; default: `config`.
    """
    text = json.dumps({**configuration.to_record(config), "launcher": config.launcher}, sort_keys=True)
    settings = hashlib.sha256(text.encode()).hexdigest()[:16]
    _loaded[path, settings] = config
    _unseeded.setdefault((path, settings), unseeded or config)
    return settings


def check_name(flag: str, name: str) -> None:
    """Raise `ConfigError` unless `name` is empty (not given) or a valid folder name."""
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(f"{flag}: found {name!r}, expected at most 64 letters, digits, '.', '_' or '-'")
