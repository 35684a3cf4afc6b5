"""Safe readers for `.npz` and MXNet's `.params`: they never allocate more than the file holds.

The libraries' own readers allocate what a header declares, so one flipped bit can take gigabytes. Neither reader runs
code from the file; both raise `ValueError` for anything malformed.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.files import open_regular


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an `np.savez` file, read-only. Raises `ValueError`, or `OSError` if it cannot be read."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                file.seek(-12, os.SEEK_END)  # the recorded number of members: a flipped bit can hide some of them
                if int.from_bytes(file.read(2), "little") != len(members):
                    raise ValueError(f"only {len(members)} of its arrays can be found")
                if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                    raise ValueError("its arrays are compressed")
                if any(member.compress_size != member.file_size for member in members):
                    raise ValueError("the sizes of its arrays are inconsistent")
                if sum(member.file_size for member in members) > size:
                    raise ValueError(f"it declares more than its {size} bytes")
                return {member.filename.removesuffix(".npy"): _npy(archive.read(member)) for member in members}
        except (ValueError, OSError):
            raise
        except Exception as error:  # a flipped bit can surface as almost anything in zipfile and numpy
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _npy(content: bytes) -> np.ndarray:
    head = io.BytesIO(content[:16384])
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(head)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - head.tell():
        raise ValueError(f"an array is declared as {shape} of {dtype}, which does not match its content")
    flat = np.frombuffer(content, dtype, math.prod(shape), head.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


#: First eight bytes of every file written by MXNet's `save` (kMXAPINDArrayListMagic, little-endian).
PARAMS_MAGIC = (0x112).to_bytes(8, "little")

#: Magic number of an array: MXNet 1.0; 1.2 and later; later with NumPy shapes (src/ndarray/ndarray.cc).
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA

#: mshadow's type flags. 12 is bfloat16, which numpy lacks: the upper half of a float32.
_TYPES = ("f4", "f8", "f2", "u1", "i4", "i1", "i8", "b1", "i2", "u2", "u4", "u8", "u2")
_BFLOAT16 = 12

_MAX_DIMENSIONS = 32


def read_params(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Read the arrays of a `.params` file and their names, if any. Raises `ValueError`, or `OSError` if unreadable."""
    with os.fdopen(open_regular(path), "rb") as file:
        reader = _Reader(file)
        if reader.bytes(8) != PARAMS_MAGIC:
            raise ValueError("it does not start like a .params file")
        reader.numbers("Q")
        (count,) = reader.numbers("Q")
        arrays = [_array(reader) for _ in range(count)]
        (count,) = reader.numbers("Q")
        names = [reader.bytes(*reader.numbers("Q")).decode() for _ in range(count)]
    if names and len(names) != len(arrays):
        raise ValueError(f"{len(arrays)} arrays have {len(names)} names")
    return arrays, names


class _Reader:
    """Reads binary values, never past the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, os.fstat(file.fileno()).st_size

    def bytes(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"it declares {count} bytes where only {self.left} are left")
        self.left -= count
        content = self.file.read(count)
        if len(content) != count:
            raise ValueError("it shrank while it was read")
        return content

    def numbers(self, kinds: str) -> tuple[int, ...]:
        return struct.unpack(f"<{kinds}", self.bytes(struct.calcsize(f"<{kinds}")))


def _array(reader: _Reader) -> np.ndarray:
    (kind,) = reader.numbers("I")
    if kind in (_V2, _V3) and reader.numbers("i") != (0,):
        raise ValueError("an array is sparse (make it dense with MXNet's tostype('default')) or undefined")
    # Before MXNet 1.0 an array started with its number of dimensions, which were 32 bits each.
    old = kind not in (_V1, _V2, _V3)
    (dimensions,) = (kind,) if old else reader.numbers("i")
    if not 0 <= dimensions <= _MAX_DIMENSIONS or (dimensions == 0 and kind != _V3):
        raise ValueError(f"an array is declared to have {dimensions} dimensions")
    shape = reader.numbers(("I" if old else "q") * dimensions)
    _, _, flag = reader.numbers("iii")  # the device's type and number
    if not 0 <= flag < len(_TYPES) or min(shape, default=0) < 0:
        raise ValueError(f"an array is declared as {shape} of type {flag}")
    dtype = np.dtype(f"<{_TYPES[flag]}")
    values = np.frombuffer(reader.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    if flag == _BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values
