"""Section `[vgg]` of luigi.cfg, for programs that run without Luigi. Tasks read it through Luigi."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterable

from pipeline.errors import ConfigError
from pipeline.files import expanded

#: Where Luigi looks; a later file overrides an earlier one.
_FILES = ("/etc/luigi/client.cfg", "/etc/luigi/luigi.cfg", "client.cfg", "luigi.cfg")

#: Renamed options: old name -> new name.
OLD_NAMES = {"patience_seconds": "retry_timeout"}


def read() -> dict[str, str]:
    """Return the options in `[vgg]`, with `~` and `$NAME` expanded in paths. Raises `ConfigError`."""
    parser = configparser.ConfigParser()
    for file in [*_FILES, os.environ.get("LUIGI_CONFIG_PATH", "")]:
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, ValueError) as error:
            raise ConfigError(f"{file}: cannot be read as Luigi's configuration: {error}") from error
    try:
        items = parser.items("vgg") if parser.has_section("vgg") else ()
    except configparser.InterpolationError as error:
        raise ConfigError(f"luigi.cfg: [vgg] {error.option}: a % must be written %%") from None
    options = {option.replace("-", "_"): value for option, value in items}
    refuse_old_names(options)
    paths = {key: expanded(options[key], f"[vgg] {key}") for key in ("workspace", "cache") if options.get(key)}
    return {**options, **paths}


def refuse_old_names(options: Iterable[str]) -> None:
    """Raise `ConfigError` if `[vgg]` has an option under its old name."""
    for old in {option.replace("-", "_") for option in options} & OLD_NAMES.keys():
        raise ConfigError(f"luigi.cfg: [vgg] {old} is now called {OLD_NAMES[old]}: rename it")


def seconds(settings: dict[str, str], key: str, default: float) -> float:
    """Return the option `key` as a number of seconds."""
    try:
        return float(settings.get(key, default))
    except ValueError:
        raise ConfigError(f"luigi.cfg: [vgg] {key}: found {settings[key]}, expected a number of seconds") from None
