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
        config = with_generation_seed(configuration.load(path), values["generation"])
        launcher_of(config)  # validates it before anything runs
        settings = register_config(path, config)
    return {
        "architecture": run_id(config.architecture),
        "dataset": f"{config.data.name} from {shown_source(config.data)}",
        "settings": settings,
    }


def register_config(path: str, config: Config) -> str:
    """Keep a loaded configuration for the tasks of this process. Returns its digest, their `settings`."""
    text = json.dumps({**configuration.to_record(config), "launcher": config.launcher}, sort_keys=True)
    settings = hashlib.sha256(text.encode()).hexdigest()[:16]
    _loaded[path, settings] = config
    return settings


def check_name(flag: str, name: str) -> None:
    """Raise `ConfigError` unless `name` is empty (not given) or a valid folder name."""
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(f"{flag}: found {name!r}, expected at most 64 letters, digits, '.', '_' or '-'")
