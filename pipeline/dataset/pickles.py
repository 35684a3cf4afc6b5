"""Reading the python layout, which is pickle, without letting it run code.

A pickle is a program. `pickletools` takes it apart into operations, and `_Machine` carries out the few that build
numbers, texts, lists, dicts and numpy arrays. Nothing that a pickle names is ever looked up or called: what it says of
an array is noted, and numpy sees the bytes later. So the time and memory that a pickle takes are those of its bytes.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.refusal import Refused
from pipeline.errors import PipelineError
from pipeline.text import shown

#: Operations that a pickle may have: so many, and one more for so many of its bytes. A batch, which has
#: 3,072 bytes of each image, needs 2 to 13 operations for it.
_OPERATIONS, _BYTES_EACH = 20_000, 200

#: What has its value as the argument: numbers, texts and bytes.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PYTHON_2_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}

#: What a pickle may name. The cores of numpy 1 and 2 have different names.
_ENCODE = "_codecs encode"
_DTYPE, _NDARRAY = "numpy dtype", "numpy ndarray"
_RECONSTRUCT, _SCALAR, _FROM_BUFFER = (
    {f"numpy.{core}.{name}" for core in ("core", "_core")}
    for name in ("multiarray _reconstruct", "multiarray scalar", "numeric _frombuffer")
)
_KNOWN = {_ENCODE, _DTYPE, _NDARRAY, *_RECONSTRUCT, *_SCALAR, *_FROM_BUFFER}


def load(content: bytes | bytearray, name: str) -> dict[str, Any]:
    """The dict in one pickled file `name`, keys as text, byte strings as `bytes`, arrays as `Array`.

    Raises `Refused` when it is no such pickle, or names anything but the parts of a numpy array.
    """
    try:
        value = _Machine(name, len(content)).run(pickletools.genops(io.BytesIO(content)))
    except (PipelineError, MemoryError):
        raise
    except Exception as error:
        raise Refused(f"{name} is not a readable pickle ({type(error).__name__}: {shown(str(error))})") from None
    if not isinstance(value, dict):
        raise Refused(f"{name} holds a {type(value).__name__}, expected a dict with data and labels")
    return {_text(key): item for key, item in value.items()}


@dataclass(eq=False)
class Array:
    """What a pickle says about a numpy array: shape, dtype, the bytes, and their order."""

    shape: Any = ()
    dtype: Any = None
    raw: Any = b""
    fortran: bool = False

    def to_numpy(self) -> NDArray[Any]:
        """The array itself, read-only, if it holds integers. Raises `ValueError` or `TypeError` for anything else."""
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.raw, (bytes, bytearray)):
            raise TypeError("an array of something else than integers")
        flat = np.frombuffer(self.raw, self.dtype.to_numpy())
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


@dataclass(eq=False)
class _Dtype:
    """What a pickle says about a numpy dtype."""

    code: Any
    order: Any = "|"

    def to_numpy(self) -> np.dtype[Any]:
        code, order = _text(self.code), _text(self.order)
        if not re.fullmatch(r"[|<>=]?[iu][1248]", code) or order not in ("|", "<", ">", "="):
            raise ValueError(f"an array of {shown(code)}")
        kind = np.dtype(code)
        return kind.newbyteorder(">") if order == ">" or code.startswith(">") else kind


class _Function(str):
    """The name of something that a pickle would call. Nothing is called."""


class _Machine:
    """Carries out the operations of one pickle of `size` bytes: a stack, marks in it, and a memory."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._operations = _OPERATIONS + size // _BYTES_EACH
        self._to_encode = size
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}

    def run(self, operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        """The object that the pickle describes; raises `Refused` or almost anything else when there is none."""
        for count, (operation, argument, _) in enumerate(operations):
            if count > self._operations:
                raise Refused(f"{self._name} is a pickle with far more operations than its images need")
            if operation.name == "STOP":
                break
            self._carry_out(operation.name, argument)
        return self._stack.pop()

    def _carry_out(self, operation: str, argument: Any) -> None:
        stack = self._stack
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case _ if operation in _VALUES:
                stack.append(argument)
            case _ if operation in _PYTHON_2_STRINGS:
                stack.append(argument.encode("latin1"))
            case _ if operation in _CONSTANTS:
                stack.append(_CONSTANTS[operation]())
            case "LIST":
                stack.append(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._last(int(operation[-1]))))
            case "DICT":
                items = self._since_mark()
                stack.append({})
                self._fill(items)
            case "APPEND":
                self._extend(self._last(1))
            case "APPENDS":
                self._extend(self._since_mark())
            case "SETITEM":
                self._fill(self._last(2))
            case "SETITEMS":
                self._fill(self._since_mark())
            case "MEMOIZE":
                self._memory[len(self._memory)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memory[int(argument)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memory[int(argument)])
            case "GLOBAL":
                stack.append(self._function(argument))
            case "STACK_GLOBAL":
                stack.append(self._function(" ".join(self._last(2))))
            case "REDUCE":
                stack.append(self._result(*self._last(2)))
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case _:
                raise Refused(f"{self._name} is a pickle with the operation {operation}, which no batch needs")

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("too few objects")
        return self._since(len(self._stack) - count)

    def _since_mark(self) -> list[Any]:
        return self._since(self._marks.pop())

    def _since(self, start: int) -> list[Any]:
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError("items for something else than a list")
        target.extend(items)

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items for something else than a dict")
        if not all(isinstance(key, (str, bytes)) for key in items[::2]):  # hashing a tuple can take for ever
            raise TypeError("a key that is no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _function(self, name: str) -> _Function:
        if name not in _KNOWN:
            wanted = shown(name.replace(" ", "."))
            raise Refused(f"{self._name} is a pickle that wants {wanted}, which no batch needs; nothing was run")
        return _Function(name)

    def _result(self, function: Any, arguments: Any) -> Any:
        """What calling `function` would give, without calling anything."""
        if not isinstance(function, _Function) or not isinstance(arguments, tuple) or len(arguments) > 4:
            raise TypeError("a call of something that is no part of an array")
        if function == _ENCODE:
            return self._encoded(*arguments)
        if function == _DTYPE:
            return _Dtype(arguments[0])
        if function in _SCALAR:
            return int(Array((), *arguments).to_numpy())
        if function in _FROM_BUFFER:
            raw, dtype, shape, order = arguments
            return Array(shape, dtype, raw, order == "F")
        return Array()  # numpy's _reconstruct: the rest follows as the array's state

    def _encoded(self, text: str, encoding: str | bytes) -> bytes:
        # Protocols before 3 store bytes as latin-1 text.
        if _text(encoding).lower() not in ("latin1", "latin-1"):
            raise ValueError("bytes in another encoding than latin1")
        self._to_encode -= len(text)
        if self._to_encode < 0:
            raise ValueError("more bytes than the pickle has")
        return text.encode("latin1")

    @staticmethod
    def _build(target: Any, state: Any) -> None:
        if isinstance(target, _Dtype):
            target.order = state[1]
        elif isinstance(target, Array):
            _, target.shape, target.dtype, target.fortran, target.raw = state
        else:
            raise TypeError("a state for something that has none")


def _text(value: Any) -> str:
    if not isinstance(value, (str, bytes)):  # to show a tuple can take for ever
        raise TypeError("a name that is no text")
    return value.decode("latin1") if isinstance(value, bytes) else value
