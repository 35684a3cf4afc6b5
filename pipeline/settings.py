"""Section `[vgg]` of luigi.cfg, for programs that run without Luigi. The tasks read it through Luigi itself."""

from __future__ import annotations

import configparser
import os

from pipeline.errors import ConfigError

#: Where Luigi looks, the later file before the earlier one.
_FILES = ("/etc/luigi/client.cfg", "/etc/luigi/luigi.cfg", "client.cfg", "luigi.cfg")


def read() -> dict[str, str]:
    """What `[vgg]` says, with `~` and `$NAME` filled in. Raises `ConfigError` for a file that cannot be understood."""
    parser = configparser.ConfigParser(interpolation=None)
    named = os.environ.get("LUIGI_CONFIG_PATH")
    try:
        parser.read([*_FILES, *([named] if named else [])], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"luigi.cfg: {error}") from error
    section = parser["vgg"] if parser.has_section("vgg") else {}
    return {key: os.path.expanduser(os.path.expandvars(value)) for key, value in section.items()}


def seconds(settings: dict[str, str], key: str, default: float) -> float:
    """A number of seconds among the settings."""
    try:
        return float(settings.get(key, default))
    except ValueError:
        raise ConfigError(f"luigi.cfg: [vgg] {key}: found {settings[key]}, expected a number of seconds") from None
