"""A check of an `.onnx` file before anything loads it: no tensor may have its values in another file.

Walks the protocol buffers itself, message by message, and skips the values: `onnx` is not needed.
Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from pipeline.errors import PipelineError

#: For each message, the fields that hold messages with tensors somewhere below them.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}

#: Fields of a tensor that say where its values are: `external_data`, `data_location`.
_ELSEWHERE = (13, 14)


def check(path: Path) -> None:
    """Raise `PipelineError` unless the file is an ONNX model that is complete in itself.

    onnxruntime before 1.24 reads values from whatever path a model names. The export writes none.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            elsewhere = _names_other_files(content)
    except OSError as error:
        raise PipelineError(f"{path}: cannot read it: {error.strerror}") from error
    except (ValueError, IndexError):
        raise PipelineError(f"{path}: not a usable ONNX model (damaged, or another format); export it again") from None
    if elsewhere:
        raise PipelineError(f"{path}: stores values in other files, which are not read; save the model as one file")


def _names_other_files(content: mmap.mmap) -> bool:
    waiting = [("model", 0, len(content))]
    while waiting:
        message, position, end = waiting.pop()
        while position < end:
            key, position = _varint(content, position)
            number, kind = key >> 3, key & 7
            if message == "tensor" and number in _ELSEWHERE:
                return True
            start, position = _value(content, position, kind)
            if position > end:
                raise ValueError("a field reaches beyond its message")
            inner = _MESSAGES[message].get(number)
            if inner and kind == 2:
                waiting.append((inner, start, position))
    return False


def _value(content: mmap.mmap, position: int, kind: int) -> tuple[int, int]:
    """Where the value of a field of this wire type begins and ends."""
    if kind == 0:
        return position, _varint(content, position)[1]
    if kind == 2:
        length, position = _varint(content, position)
        return position, position + length
    if kind in (1, 5):
        return position, position + (8 if kind == 1 else 4)
    raise ValueError(f"wire type {kind}")


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number without an end")
