"""Key-by-key differences between two configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline import address
from pipeline.text import printable


def flatten(value: Any, prefix: str = "", lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts and, if `lists`, lists: `("schedule.kind", "step")`, `("dense[0]", 64)`."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key), lists)
    elif lists and isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from flatten(item, f"{prefix}[{index}]")
    else:
        yield prefix, value


def differences(old: Any, new: Any) -> list[str]:
    """List what changed between two nested values, as one `key: old -> new` per leaf."""
    try:
        before, after = dict(flatten(old)), dict(flatten(new))
    except RecursionError:  # a damaged manifest
        return ["nested too deeply to be compared"]
    lines = []
    for key in {**before, **after}:
        if key not in before or key not in after or before[key] != after[key]:
            was = shown(before[key]) if key in before else "(none)"
            now = shown(after[key]) if key in after else "(gone)"
            lines.append(f"{key}: {was} -> {now}")
    return [printable(line) for line in lines]  # the keys of a damaged manifest can be anything


def shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = ""
    for piece in json.JSONEncoder(default=str).iterencode(value):  # aliases can turn a small file into a huge value
        text += re.sub(r"\w{1,30}://[^\"]*", lambda match: address.shown(match[0]), piece)
        if len(text) > 60:
            return text[:57] + "..."
    return text
