"""Load a YAML file into a validated `Config`: find the file, resolve its paths, read the launcher that it names."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import urllib.parse
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from pipeline.config.checks import check_classes, check_combinations, check_launcher, check_meaning, check_schedule
from pipeline.config.difference import shown
from pipeline.config.messages import explain
from pipeline.config.schema import OFFICIAL, RENAMED, Config, to_dict, with_classes
from pipeline.config.yaml_file import parse, read
from pipeline.errors import ConfigError
from pipeline.files import check_path, expanded

#: Start of every `config.yaml` recorded by a training.
_RECORDED = "# The full configuration "


def load(path: str | os.PathLike[str]) -> Config:
    """Read and validate one YAML file.

    Raises `ConfigError` with the file, the key path, what was found and what is allowed. The name of a ready-made file
    (`config/vgg11.yaml`) that does not exist here falls back to the installed plugin. Relative paths in the file are
    relative to its folder. `CIFAR10_SOURCE` and `CIFAR100_SOURCE` in the environment override the source of a
    `cifar10` or `cifar100` data set.
    """
    check_path(path, "--config")
    file = find(path)
    text = read(file, str(path))
    config = (from_record if text.startswith(_RECORDED) else from_dict)(parse(text, str(path)), str(path))
    check_schedule(config.training, f"{path}: training.schedule")
    check_combinations(config, f"{path}")
    check_classes(config, f"{path}: architecture.classes")
    launcher = config.launcher
    if isinstance(launcher, str):
        launcher = load_launcher(launcher, f"{path}: launcher", file.parent)
    data, training = config.data, config.training
    variable = f"{data.name.upper()}_SOURCE"
    override = os.environ.get(variable) if data.name in OFFICIAL else None
    if override:
        # The checksum and the mirrors belong to the source that is replaced.
        data = replace(data, source=_absolute(override, Path.cwd(), variable), sha256=None, mirrors=[])
        check_meaning(replace(config, data=data), to_dict(config), variable)
    else:
        known = {official.url: official.sha256 for official in OFFICIAL.values()}
        data = replace(
            data,
            source=_absolute(data.source, file.parent, f"{path}: data.source"),
            mirrors=[_absolute(mirror, file.parent, f"{path}: data.mirrors") for mirror in data.mirrors],
            sha256=data.sha256 or known.get(data.source),
        )
    if training.init_from is not None:
        where = f"{path}: training.init_from"
        training = replace(training, init_from=_absolute(training.init_from, file.parent, where))
    return replace(config, data=data, training=training, launcher=launcher)


def from_dict(value: Any, where: str = "configuration") -> Config:
    """Validate plain dicts and lists. Raises `ConfigError` with `where` and the key path."""
    try:
        config = msgspec.convert(value, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(str(error), value)}") from None
    data = config.data
    given = data.name not in OFFICIAL or "source" in value.get("data", ())
    source = _local(data.source) if given else OFFICIAL[data.name].url
    data = replace(data, source=source, mirrors=[_local(mirror) for mirror in data.mirrors])
    config = replace(config, data=data)
    check_meaning(config, value, where)
    return with_classes(config, config.data.classes)


def from_record(value: Any, where: str = "configuration") -> Config:
    """Like `from_dict`, for a configuration recorded by a run, possibly under older key names."""
    return from_dict(_with_new_names(value), where)


def _with_new_names(value: Any, prefix: str = "") -> Any:
    if not isinstance(value, dict):
        return value
    paths = {f"{prefix}{key}": item for key, item in value.items()}
    return {
        RENAMED.get(path, path).rpartition(".")[2]: _with_new_names(item, f"{path}.") for path, item in paths.items()
    }


def _local(location: str) -> str:
    """Return the path in a file:// address, and any other location unchanged."""
    scheme, separator, rest = location.partition("://")
    if not separator or scheme.lower() != "file":
        return location
    return urllib.parse.unquote("/" + re.split(r"[?#]", rest)[0].partition("/")[2])


def _absolute(location: str, folder: Path, where: str) -> str:
    location = _local(location)
    if location == "bundled" or "://" in location:
        return location
    path = os.path.normpath(folder / expanded(location, where))
    check_path(path, where)
    return path


def find(path: str | os.PathLike[str]) -> Path:
    """Return the file at `path`, or else the ready-made file of that name. Raises `ConfigError`."""
    given = Path(path)
    if os.path.isfile(given):  # Path.is_file raises for a name that is too long
        return given.resolve()
    if os.path.exists(given):  # the file is read more than once, and a device may never end
        raise ConfigError(f"{path}: found a folder, a pipe or a device; give the path of a YAML file")
    if not given.is_absolute() and given.parent.as_posix() in (".", "config"):
        ready_made = ready_made_folder() / given.name
        if os.path.isfile(ready_made):
            return ready_made
    known = [f"config/{file.name}" for file in sorted(ready_made_folder().glob("*.yaml"))]
    is_folder = os.path.isdir(given.parent)  # Path.glob raises for a name that is too long
    here = sorted(str(file) for kind in ("*.yaml", "*.yml") for file in given.parent.glob(kind)) if is_folder else []
    by_name = {Path(file).stem: file for file in (*known, *here)}
    if close := difflib.get_close_matches(given.stem, by_name, 1, 0.7):
        raise ConfigError(f"{path}: no such configuration file (did you mean {by_name[close[0]]}?)")
    raise ConfigError(f"{path}: no such configuration file; give a path, or one of the ready-made {', '.join(known)}")


def ready_made_folder() -> Path:
    """Return the folder of the ready-made YAML files: in the installed package, or `config/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "ready_made"
    return installed if installed.is_dir() else package.parent / "config"


def with_launcher(config: Config, launcher: str, where: str) -> Config:
    """Return `config` with another launcher: the name of a YAML file, a command line, or `none`."""
    if launcher == "none":
        arguments = []
    elif launcher.endswith((".yaml", ".yml")):
        arguments = load_launcher(launcher, where, Path())
    else:
        try:
            arguments = shlex.split(launcher)
        except ValueError as error:
            raise ConfigError(f"{where}: found {launcher!r}: {error}") from None
        check_launcher(arguments, where)
    return replace(config, launcher=arguments)


def load_launcher(name: str, where: str, folder: Path) -> list[str]:
    """Read the `launcher` list from the file `name`: in `folder`, the working directory or the ready-made launchers.

    Raises `ConfigError`, naming the key or option `where`.
    """
    ready_made = ready_made_folder() / "launchers"
    candidates = [folder / expanded(name, where), Path(name), ready_made / name.rpartition("config/launchers/")[2]]
    file = next((path for path in candidates if os.path.isfile(path)), None)
    if file is None:
        known = ", ".join(f"config/launchers/{path.name}" for path in sorted(ready_made.glob("*.yaml")))
        raise ConfigError(
            f"{where}: found {name!r}, which is not a file; give a list of arguments such as [srun, --gres=gpu:1], "
            f"a YAML file that holds one, or one of the ready-made {known}"
        )
    value = parse(read(file, name), name)
    arguments = value.get("launcher")
    if set(value) != {"launcher"} or not isinstance(arguments, list) or not all(isinstance(a, str) for a in arguments):
        raise ConfigError(f"{name}: found {shown(value)}, expected the one key launcher with a list of arguments")
    check_launcher(arguments, f"{name}: launcher")
    return arguments
