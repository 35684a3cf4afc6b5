"""Gluon `.params` files: written atomically, and checked when read."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import arrays
from pipeline.errors import WeightsError
from pipeline.files import atomic_writer, open_regular, remove_debris, sha256_file
from pipeline.model import vgg
from pipeline.runtime import mxnet

#: Files often mistaken for a `.params` file, by their first bytes.
_FOREIGN = (
    (b"PK", "a ZIP archive (an .npz or a PyTorch file?)"),
    (b"{", "JSON (the network's -symbol.json?)"),
    (b"\x80", "a Python pickle"),
    (b"<", "an HTML or XML page"),
    (b"\x08", "a protocol buffer (an ONNX model?)"),
)


def save(net: Any, path: Path) -> None:
    """Write the network's parameters under their structural names, atomically. Raises `OSError` on a full disk."""
    remove_debris(path.parent, path.name)
    with atomic_writer(path) as file:
        net.save_parameters(f"/proc/self/fd/{file.fileno()}")  # MXNet takes only a path
        # MXNet does not always report a full disk, and a truncated file must not replace a good one.
        if os.fstat(file.fileno()).st_size < 4 * sum(math.prod(value.shape) for value in net.collect_params().values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def load(net: Any, path: Path, contexts: list[Any]) -> None:
    """Load a `.params` file into `net` on `contexts`. Raises `WeightsError` when it is damaged or does not fit."""
    mx = mxnet()
    stored, expected = read(path), vgg.parameters(net)
    _check_fit({name: value.shape for name, value in stored.items()}, {n: p.shape for n, p in expected.items()}, path)
    values = {name: value.astype(np.float32) for name, value in stored.items()}
    for name, value in values.items():
        if bad := int(np.count_nonzero(~np.isfinite(value))):
            raise WeightsError(
                f"{path}: {bad} of the {value.size} numbers of {name} are not finite (NaN or infinite): "
                "use the file of a training that did not diverge"
            )
    for name, parameter in expected.items():
        if parameter._data is None:
            parameter.initialize(mx.init.Zero(), ctx=contexts, force_reinit=True)
        parameter.set_data(mx.nd.array(values[name], dtype="float32"))


def load_verified(net: Any, path: Path, sha256: str, contexts: list[Any]) -> None:
    """Like `load`, but first verifies the digest recorded in the file's manifest."""
    try:
        actual = sha256_file(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read it: {error.strerror}") from error
    if actual != sha256:
        raise WeightsError(
            f"{path}: damaged: its SHA-256 is {actual[:8]}…, its manifest says {sha256[:8]}…; restore it from a "
            "backup, or set the stage aside (luigi --module tasks SetAside --stage train --confirm) and train again"
        )
    load(net, path, contexts)


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in a `.params` file by name, without `arg:` and `aux:` prefixes. Raises `WeightsError`."""
    try:
        if path.exists() and not path.is_file():
            raise WeightsError(f"{path}: found a folder or a pipe, expected a Gluon .params file")
        with os.fdopen(open_regular(path), "rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(8)
        if size == 0:
            raise WeightsError(f"{path}: an empty file, expected a Gluon .params file; copy it again from its source")
        if head != arrays.PARAMS_MAGIC:
            kind = next((kind for magic, kind in _FOREIGN if head.startswith(magic)), "an unknown kind of file")
            raise WeightsError(f"{path}: found {kind}, expected a .params file written by Gluon's save_parameters")
        values, names = arrays.read_params(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot read it: {error.strerror}; give the path of a Gluon .params file"
        ) from error
    except (ValueError, MemoryError) as error:
        raise WeightsError(f"{path}: damaged or truncated ({size} bytes): {error}; copy it again") from error
    if values and not names:
        raise WeightsError(f"{path}: its {len(values)} arrays have no names; write it with Gluon's save_parameters")
    return {name.removeprefix("arg:").removeprefix("aux:"): value for name, value in zip(names, values, strict=True)}


def _check_fit(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise `WeightsError` naming the arrays that are missing, unexpected or of another shape."""
    problems = {
        "missing": [f"{name} {shape}" for name, shape in expected.items() if name not in found],
        "unexpected": [f"{name} {shape}" for name, shape in found.items() if name not in expected],
        "other shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    lines = [
        f"{title}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
        for title, names in problems.items()
        if names
    ]
    if lines:
        raise WeightsError(f"{path}: does not fit the configured architecture; {'; '.join(lines)}")
