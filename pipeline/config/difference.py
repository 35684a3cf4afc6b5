"""Two configurations told apart, key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline import address
from pipeline.text import printable


def flatten(value: Any, prefix: str = "", lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Walk nested dicts and lists, giving `("training.schedule.kind", "step")`, `("conv_arch[0][1]", 64)`.

    Without `lists`, these stay whole.
    """
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key), lists)
    elif lists and isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from flatten(item, f"{prefix}[{index}]")
    else:
        yield prefix, value


def differences(old: Any, new: Any) -> list[str]:
    """What changed between two nested values, one `key: old -> new` for each leaf."""
    try:
        before, after = dict(flatten(old)), dict(flatten(new))
    except RecursionError:  # of a damaged manifest
        return ["nested too deeply to be compared"]
    lines = []
    for key in {**before, **after}:
        if key not in before or key not in after or before[key] != after[key]:
            was = shown(before[key]) if key in before else "(none)"
            now = shown(after[key]) if key in after else "(gone)"
            lines.append(f"{key}: {was} -> {now}")
    return [printable(line) for line in lines]  # a key of a damaged manifest may be anything


def shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = ""
    for piece in json.JSONEncoder(default=str).iterencode(value):  # aliases can make a small file a huge value
        text += re.sub(r"\w+://[^\"]*", lambda found: address.shown(found[0]), piece)
        if len(text) > 60:
            return text[:57] + "..."
    return text
