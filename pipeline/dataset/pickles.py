"""Read the pickles of the python layout without running any code in them.

A pickle is a program. `pickletools` parses it into operations, and `_Machine` executes the few that build numbers,
strings, lists, dicts and numpy arrays. Nothing that a pickle names is ever imported or called: arrays are only
described, and numpy gets the bytes later. So a pickle takes time and memory in proportion to its size.
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

#: Operations that a pickle may have: a base, plus one for every so many bytes. A batch needs 2 to 13 operations for
#: the 3,072 bytes of an image.
_OPERATIONS, _BYTES_PER_OPERATION = 20_000, 200

#: Operations whose argument is the value: numbers, strings and bytes.
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

#: The globals that a pickle may name. The core module of numpy 2 is called `_core`.
_ENCODE = "_codecs encode"
_DTYPE, _NDARRAY = "numpy dtype", "numpy ndarray"
_RECONSTRUCT, _SCALAR, _FROM_BUFFER = (
    {f"numpy.{core}.{name}" for core in ("core", "_core")}
    for name in ("multiarray _reconstruct", "multiarray scalar", "numeric _frombuffer")
)
_KNOWN = {_ENCODE, _DTYPE, _NDARRAY, *_RECONSTRUCT, *_SCALAR, *_FROM_BUFFER}


def load(content: bytes | bytearray, name: str) -> dict[str, Any]:
    """Return the dict pickled in the file `name`: keys as `str`, byte strings as `bytes`, arrays as `Array`.

    Raises `Refused` when it is not such a pickle, or names anything but the parts of a numpy array.
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
    """A numpy array as described by a pickle: shape, dtype, the bytes, and their order."""

    shape: Any = ()
    dtype: Any = None
    raw: Any = b""
    fortran: bool = False

    def to_numpy(self) -> NDArray[Any]:
        """Return the array, read-only. Raises `ValueError` or `TypeError` unless it holds integers."""
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.raw, (bytes, bytearray)):
            raise TypeError("an array of something other than integers")
        flat = np.frombuffer(self.raw, self.dtype.to_numpy())
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


@dataclass(eq=False)
class _Dtype:
    """A numpy dtype as described by a pickle."""

    code: Any
    order: Any = "|"

    def to_numpy(self) -> np.dtype[Any]:
        code, order = _text(self.code), _text(self.order)
        if not re.fullmatch(r"[|<>=]?[iu][1248]", code) or order not in ("|", "<", ">", "="):
            raise ValueError(f"an array of {shown(code)}")
        kind = np.dtype(code)
        return kind.newbyteorder(">") if order == ">" else kind


class _Global(str):
    """The name of a global that a pickle would call. It is never called."""


class _Machine:
    """Executes the operations of one pickle of `size` bytes, with a stack, its marks, and a memo."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._max_operations = _OPERATIONS + size // _BYTES_PER_OPERATION
        self._encodable = size
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        """Return the object that the pickle describes. Raises `Refused`, or almost anything, if there is none."""
        for count, (operation, argument, _) in enumerate(operations):
            if count > self._max_operations:
                raise Refused(f"{self._name} is a pickle with far more operations than its images need")
            if operation.name == "STOP":
                break
            self._execute(operation.name, argument)
        return self._stack.pop()

    def _execute(self, operation: str, argument: Any) -> None:
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
                stack.append(self._pop_to_mark())
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(operation[-1]))))
            case "DICT":
                items = self._pop_to_mark()
                stack.append({})
                self._set_items(items)
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[int(argument)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[int(argument)])
            case "GLOBAL":
                stack.append(self._global(argument))
            case "STACK_GLOBAL":
                stack.append(self._global(" ".join(self._pop(2))))
            case "REDUCE":
                stack.append(self._reduce(*self._pop(2)))
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case _:
                raise Refused(f"{self._name} is a pickle with the operation {operation}, which no batch needs")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("too few objects")
        return self._pop_from(len(self._stack) - count)

    def _pop_to_mark(self) -> list[Any]:
        return self._pop_from(self._marks.pop())

    def _pop_from(self, start: int) -> list[Any]:
        popped = self._stack[start:]
        del self._stack[start:]
        return popped

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError("items for something other than a list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items for something other than a dict")
        if not all(isinstance(key, (str, bytes)) for key in items[::2]):  # hashing a tuple can take for ever
            raise TypeError("a key that is not a string")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _global(self, name: str) -> _Global:
        if name not in _KNOWN:
            wanted = shown(name.replace(" ", "."))
            raise Refused(f"{self._name} is a pickle that references {wanted}, which no batch needs; nothing was run")
        return _Global(name)

    def _reduce(self, function: Any, arguments: Any) -> Any:
        """Return a description of what `function` would return, without calling it."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple) or len(arguments) > 4:
            raise TypeError("a call that does not build an array")
        if function == _ENCODE:
            return self._encode(*arguments)
        if function == _DTYPE:
            return _Dtype(arguments[0])
        if function in _SCALAR:
            return int(Array((), *arguments).to_numpy())
        if function in _FROM_BUFFER:
            raw, dtype, shape, order = arguments
            return Array(shape, dtype, raw, order == "F")
        return Array()  # numpy's _reconstruct: BUILD sets the rest

    def _encode(self, text: str, encoding: str | bytes) -> bytes:
        # Protocols before 3 store bytes as latin-1 text.
        if _text(encoding).lower() not in ("latin1", "latin-1"):
            raise ValueError("bytes in an encoding other than latin1")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise ValueError("more bytes than the pickle has")
        return text.encode("latin1")

    @staticmethod
    def _build(target: Any, state: Any) -> None:
        if isinstance(target, _Dtype):
            target.order = state[1]
        elif isinstance(target, Array):
            _, target.shape, target.dtype, target.fortran, target.raw = state
        else:
            raise TypeError("a state for an object without one")


def _text(value: Any) -> str:
    if not isinstance(value, (str, bytes)):  # formatting a tuple can take for ever
        raise TypeError("a name that is not a string")
    return value.decode("latin1") if isinstance(value, bytes) else value
