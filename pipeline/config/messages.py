"""One-line error messages for a configuration: the key, what was found, what is allowed."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from msgspec.structs import fields

from pipeline.config.difference import shown
from pipeline.config.schema import RENAMED, Config

#: msgspec's names of types, in plain words.
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping of keys",
}

#: The patterns of the schema in plain words, by the last part of the key.
_FORMATS = {
    "name": "letters, digits, '.', '_' and '-' (at most 64, a letter or digit first)",
    "sha256": "64 hexadecimal digits",
    "device": "auto, cpu, gpu, gpu:0 or gpu:0,1",
}

#: The key to suggest to a user who gives a single value instead of a mapping.
_MAIN_KEYS = {
    "data": "name",
    "training.schedule": "kind",
    "evaluation": "tta",
    "retrain": "every",
    "distributed": "workers",
}

_UNKNOWN = r"Object contains unknown field `(.*)`"


def explain(message: str, value: Any) -> str:
    """Translate msgspec's message into the key path, what was found and what is allowed."""
    # msgspec gives no place at the top level, where a key may look like one.
    if (unknown := re.fullmatch(_UNKNOWN, message, re.DOTALL)) and unknown[1] in value:
        return _unknown("", unknown[1])
    problem, place, pointer = message.rpartition(" - at `$")
    if not place:
        problem, pointer = message, ""
    path = pointer.rstrip("`").lstrip(".")
    if unknown := re.fullmatch(_UNKNOWN, problem, re.DOTALL):
        return _unknown(path, unknown[1])
    if missing := re.match(r"Object missing required field `(.*)`", problem):
        return f"missing key {_join(path, missing[1])}"
    found = _value_at(value, path)
    return f"{path or 'top level'}: found {shown(found)}{_expected(problem, path, found)}"


def _unknown(path: str, key: str) -> str:
    old, allowed = _join(path, key), _struct_at(path).__struct_fields__
    if old in RENAMED:
        return f"{old}: is now called {RENAMED[old].rpartition('.')[2]}"
    close = difflib.get_close_matches(key, allowed, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    cut = key if len(key) <= 60 else f"{key[:57]}..."
    return f"unknown key {_join(path, cut)}{hint}; allowed: {', '.join(allowed)}"


def _expected(problem: str, path: str, found: Any) -> str:
    """Return what is allowed at `path`, as the end of a sentence about the value found there."""
    key = path.rpartition(".")[2]
    if path in _MAIN_KEYS and found is not None and not isinstance(found, (dict, list)):
        meant = shown(found).strip('"')
        return f"; write {key}: {{{_MAIN_KEYS[path]}: {meant}}}"
    if path == "launcher":
        return ", expected a list of arguments, or the name of a file that holds one"
    if problem.startswith("Invalid enum value"):
        return f", expected one of {_choices_at(path)}"
    if "matching regex" in problem:
        return f", expected {_FORMATS[key]}"
    words = re.sub(r"`(\w[\w |]*)`", lambda match: _kinds(match[1]), problem.partition(", got ")[0])
    words = re.sub(r"\.0\b", "", words.replace("Expected", "expected", 1))
    if path.startswith("architecture.conv_arch"):
        words += " (conv_arch is a list of [convolutions, channels])"
    if isinstance(found, str) and re.fullmatch(r"[-+]?0[0-9]+", found):
        words += " without leading zeros"
    if path.startswith("launcher["):
        words += "; put each argument in quotes"
    return f", {words}"


def _kinds(types: str) -> str:
    return " or ".join(_TYPES.get(kind, kind) for kind in types.split(" | ") if kind != "null")


def _choices_at(path: str) -> str:
    parent, _, field = path.rpartition(".")
    hint = _struct_at(re.sub(r"\[.*", "", parent)).__annotations__[re.sub(r"\[.*", "", field)]
    return ", ".join(re.findall(r"\w+", str(hint).partition("Literal[")[2]))


def _struct_at(path: str) -> Any:
    struct: Any = Config
    for step in path.split(".") if path else ():
        hint = next(field.type for field in fields(struct) if field.name == step)
        struct = next(kind for kind in (hint, *get_args(hint)) if hasattr(kind, "__struct_fields__"))
    return struct


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _value_at(value: Any, path: str) -> Any:
    for step in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(step)] if isinstance(value, (list, tuple)) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return value
