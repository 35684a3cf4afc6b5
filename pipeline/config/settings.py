"""Section `[vgg]` of luigi.cfg, for programs that run without Luigi. The tasks read it through Luigi itself."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterable

from pipeline.errors import ConfigError
from pipeline.files import expanded

#: Where Luigi looks, the later file before the earlier one.
_FILES = ("/etc/luigi/client.cfg", "/etc/luigi/luigi.cfg", "client.cfg", "luigi.cfg")

#: Options that were renamed.
OLD_NAMES = {"patience_seconds": "retry_timeout"}


def read() -> dict[str, str]:
    """What `[vgg]` says, with `~` and `$NAME` filled in where it names a place.

    Raises `ConfigError` for a file that cannot be understood.
    """
    parser = configparser.ConfigParser()
    for file in [*_FILES, os.environ.get("LUIGI_CONFIG_PATH", "")]:
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, ValueError) as error:
            raise ConfigError(f"{file}: cannot be read as Luigi's configuration: {error}") from error
    try:
        options = parser.items("vgg") if parser.has_section("vgg") else ()
    except configparser.InterpolationError as error:
        raise ConfigError(f"luigi.cfg: [vgg] {error.option}: a % must be written %%") from None
    found = {option.replace("-", "_"): value for option, value in options}
    refuse_old_names(found)
    places = {key: expanded(found[key], f"[vgg] {key}") for key in ("workspace", "cache") if found.get(key)}
    return {**found, **places}


def refuse_old_names(options: Iterable[str]) -> None:
    """Raise `ConfigError` for an option of `[vgg]` that has another name now."""
    for old in {option.replace("-", "_") for option in options} & OLD_NAMES.keys():
        raise ConfigError(f"luigi.cfg: [vgg] {old} is now called {OLD_NAMES[old]}: rename it")


def seconds(settings: dict[str, str], key: str, default: float) -> float:
    """A number of seconds among the settings."""
    try:
        return float(settings.get(key, default))
    except ValueError:
        raise ConfigError(f"luigi.cfg: [vgg] {key}: found {settings[key]}, expected a number of seconds") from None
