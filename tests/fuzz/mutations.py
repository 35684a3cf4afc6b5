"""Hostile inputs made from good ones by flipped bits, truncation, splices and wrong sizes."""

from __future__ import annotations

import gzip
import json
import struct
from typing import Any

from hypothesis import strategies as st

#: Replacements for a number in a header: zero, small, at the limits of its type, negative.
NUMBERS = (0, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, -1, -(2**31))

#: Names and texts that a naive reader could misinterpret.
TEXTS = (
    "../../outside",
    "/tmp/outside",
    "..",
    "",
    "a/../../b",
    "x\n",
    "\x1b[31mred\x1b]0;title\x07",
    "<img src=x onerror=alert(1)>",
    "=1+1",
    "a" * 5000,
    "\ud800",
    "1e999",
    "\0",
)

json_values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.floats(),
    st.sampled_from(TEXTS),
    st.just([]),
    st.just({}),
    st.just([[]] * 3),
    st.integers(1, 3).map(lambda depth: json.loads("[" * 10**depth + "]" * 10**depth) if depth < 3 else "deep"),
)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Apply one to four edits to `good`."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        edit = draw(st.sampled_from(("flip", "number", "cut", "delete", "repeat", "insert", "digits")))
        if not content:
            break
        if edit == "flip":
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif edit == "number":
            packed = draw(st.sampled_from(("<i", ">i", "<q", ">q", "<h", ">h")))
            size = struct.calcsize(packed)
            number = draw(st.sampled_from(NUMBERS)) & (256**size - 1)
            content[place : place + size] = number.to_bytes(size, "little" if packed[0] == "<" else "big")
        elif edit == "cut":
            del content[place:]
        elif edit == "delete":
            del content[place : place + draw(st.integers(1, 600))]
        elif edit == "repeat":
            piece = bytes(content[place : place + draw(st.integers(1, 600))])
            content[place:place] = piece * draw(st.integers(1, 20))
        elif edit == "insert":
            content[place:place] = draw(st.binary(max_size=30))
        else:  # a number as text, like the sizes in tar and HTTP headers
            digits = draw(st.sampled_from((b"77777777777", b"9" * 20, b"9" * 5000, b"-1", b"00000000000", b"1e9")))
            content[place : place + min(len(digits), 12)] = digits
    return bytes(content)


def mutated_inside_gzip(good: bytes) -> st.SearchStrategy[bytes]:
    """Mutate the content of a valid gzip stream."""
    return mutated(gzip.decompress(good)).map(lambda content: gzip.compress(content, 1, mtime=0))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        found += [inner for key in value for inner in _paths(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [inner for index in range(min(len(value), 3)) for inner in _paths(value[index], (*path, index))]
    return found


@st.composite
def mutated_json(draw: st.DrawFn, good: bytes) -> bytes:
    """Replace some values or keys of valid JSON; now and then break the JSON itself."""
    if draw(st.integers(0, 4)) == 0:
        return draw(mutated(good))
    value = json.loads(good)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_paths(value)))
        if not path:
            value = draw(json_values)
            break
        place = value
        for key in path[:-1]:
            place = place[key]
        if isinstance(place, dict) and draw(st.booleans()):
            place[draw(st.sampled_from(TEXTS))] = place.pop(path[-1])
        else:
            place[path[-1]] = draw(json_values)
    return json.dumps(value).encode(errors="replace")
