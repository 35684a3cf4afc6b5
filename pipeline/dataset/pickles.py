"""Reading CIFAR-10's python layout, which is pickle, without letting it run code.

A pickle may call anything that it can name. Here it can name only the few functions by which numpy arrays are stored,
and even those are replaced by stand-ins that just remember what they were given; numpy itself sees the bytes after
they were checked.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.messages import Refused, shown
from pipeline.errors import PipelineError

#: Entries of the unpickler's memory. A batch has about 20,000; the C unpickler allocates whatever a pickle asks for.
_MEMO_LIMIT = 10_000_000

#: Operations by which a pickle reaches for something outside of itself.
_FORBIDDEN = {"NEXT_BUFFER", "READONLY_BUFFER", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}


def load(content: bytes | bytearray, where: str, name: str) -> dict[str, Any]:
    """The dict in one pickled file `name`, keys as text, byte strings as `bytes`, arrays as `Array`.

    Raises `Refused` when it is no such pickle, or names anything but the parts of a numpy array.
    """
    try:
        file = io.BytesIO(content)
        _check_operations(file, where, name)
        file.seek(0)
        value = _Unpickler(file, where, name).load()
    except PipelineError:
        raise
    except Exception as error:
        found = f"{name} is not a readable pickle ({type(error).__name__}: {shown(str(error))})"
        raise Refused(where, found) from None
    if not isinstance(value, dict):
        raise Refused(where, f"{name} holds a {type(value).__name__}, expected a dict with data and labels")
    return {_text(key): item for key, item in value.items() if isinstance(key, (str, bytes))}


class Array:
    """What a pickle says about a numpy array: shape, dtype, order, and the bytes."""

    def __init__(self, shape: Any = (), dtype: Any = None, raw: Any = b"", fortran: bool = False) -> None:
        self.shape, self.dtype, self.raw, self.fortran = shape, dtype, raw, fortran

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def to_numpy(self) -> NDArray[Any]:
        """The array itself, read-only, if it holds integers. Raises `ValueError` or `TypeError` for anything else."""
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.raw, bytes):
            raise TypeError("an array of something else than integers")
        flat = np.frombuffer(self.raw, self.dtype.to_numpy())
        return flat.reshape(tuple(int(side) for side in self.shape), order="F" if self.fortran else "C")


class _Dtype:
    """What a pickle says about a numpy dtype."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype[Any]:
        code, order = _text(self.code), _text(self.order)
        if not re.fullmatch(r"[|<>=]?[iu][1248]", code) or order not in ("|", "<", ">", "="):
            raise ValueError(f"an array of {shown(code)}")
        kind = np.dtype(code)
        return kind.newbyteorder(">") if order == ">" or code.startswith(">") else kind


class _Named:
    """A function that a pickle may call. It cannot be changed by the pickle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it tries to change a function")


def _encode(text: str, encoding: str) -> bytes:
    # Protocols before 3 store bytes as latin-1 text.
    if _text(encoding).lower() not in ("latin1", "latin-1"):
        raise ValueError("bytes in another encoding than latin1")
    return text.encode("latin1")


def _scalar(dtype: Any, raw: Any = b"") -> int:
    return int(Array((), dtype, raw).to_numpy())


def _allowed() -> dict[tuple[str, str], _Named]:
    functions: dict[tuple[str, str], Callable[..., Any]] = {
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): lambda *arguments: Array(),
    }
    for core in ("numpy.core", "numpy._core"):
        functions[core + ".multiarray", "_reconstruct"] = lambda *arguments: Array()
        functions[core + ".multiarray", "scalar"] = _scalar
        functions[core + ".numeric", "_frombuffer"] = lambda raw, dtype, shape, order: Array(
            shape, dtype, bytes(raw), order == "F"
        )
    return {name: _Named(function) for name, function in functions.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, where: str, name: str) -> None:
        super().__init__(file, encoding="bytes")
        self._where, self._name, self._known = where, name, _allowed()

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get((module, name))
        if known is None:
            wanted = shown(f"{module}.{name}")
            found = f"{self._name} is a pickle that wants {wanted}, which no CIFAR-10 batch needs; it was not run"
            raise Refused(self._where, found)
        return known


def _check_operations(file: io.BytesIO, where: str, name: str) -> None:
    """Refuse what would make the unpickler allocate absurd amounts of memory. Runs nothing.

    `genops` itself refuses a length that goes beyond the end of the pickle.
    """
    for operation, argument, _ in pickletools.genops(file):
        too_far = operation.name.endswith("PUT") and int(argument or 0) > _MEMO_LIMIT
        if too_far or operation.name in _FORBIDDEN:
            raise Refused(where, f"{name} is a pickle with the operation {operation.name}, which no batch needs")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
