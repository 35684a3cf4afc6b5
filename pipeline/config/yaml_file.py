"""YAML without surprises: duplicate keys are errors, `1e-3` is a number, a date is text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.schema import Config
from pipeline.errors import ConfigError

_INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_INTEGER = re.compile(r"[-+]?(0|[1-9](_?[0-9]){0,17}|0x[0-9a-fA-F]{1,15})\Z")
_REAL = re.compile(
    r"([-+]?([0-9](_?[0-9])*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?|[-+]?[0-9]+[eE][-+]?[0-9]{1,3}"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
)

#: Keys in one file, merged ones included; the ready-made files have about twenty.
MAX_KEYS = 10_000


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that refuses duplicate keys and reads numbers as people write them.

    PyYAML follows YAML 1.1: `1e-3` is text (yaml/pyyaml issue 173), `010` is 8, `1:30` is 90, and a date is not text.
    Here numbers follow YAML 1.2, with `_` between digits; anything else, such as a number too long, is text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012, PyYAML's own
        first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT, _DATE)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _pairs = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Expand merge keys (`<<`) up to `MAX_KEYS`: they can turn a small file into a huge value."""
        super().flatten_mapping(node)
        self._pairs += len(node.value)
        if self._pairs > MAX_KEYS:
            problem = f"more than {MAX_KEYS:,} keys, including merged ones"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _number(loader: Any, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    if _INTEGER.match(text):
        return int(text.replace("_", ""), 0)
    if _REAL.match(text):
        return loader.construct_yaml_float(node)
    raise yaml.constructor.ConstructorError(None, None, f"{text[:30]!r} is not a number", node.start_mark)


_Loader.add_implicit_resolver(_INT, _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT, _REAL, list("-+.0123456789"))
_Loader.add_constructor(_INT, _number)
_Loader.add_constructor(_FLOAT, _number)


def _mapping_without_duplicates(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def read(file: Path, shown: str) -> str:
    """Return the text of a configuration file. Raises `ConfigError`, naming the file as `shown`."""
    try:
        if file.stat().st_size > 1_000_000:
            raise ConfigError(
                f"{shown}: {file.stat().st_size} bytes is too large for a configuration file; is the path right?"
            )
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{shown}: cannot read it: {error.strerror}") from None


def parse(text: str, shown: str) -> dict[str, Any]:
    """Return the mapping in a YAML text. Raises `ConfigError`, naming the file as `shown`."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "no details"
        if error.context and problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        raise ConfigError(f"{shown}: not valid YAML{at}: {problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML raises almost anything for a wrong value behind a tag, such as `!!bool 5`.
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"{shown}: not valid YAML ({problem})") from None
    if not isinstance(value, dict):
        found = "an empty file" if value is None else f"a {type(value).__name__}"
        raise ConfigError(f"{shown}: found {found}, expected the keys {', '.join(Config.__struct_fields__)}")
    return value
