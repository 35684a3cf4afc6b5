"""MXNet's Python package without what nobody uses, in a third of its import time.

Most of the import of MXNet 1.9.1 is writing and compiling 2,500 functions, one for each operator in each namespace; a
network uses some dozens. Here each is compiled when it is first called. And modules that are there for MXNet's own
tests and for reading ONNX are loaded when they are first used, which is never.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

#: Modules that are loaded when they are first used, with all that they import.
UNUSED = ("mxnet.contrib.onnx", "mxnet.test_utils", "requests")


@contextlib.contextmanager
def quick_import() -> Iterator[None]:
    """Around the import of MXNet."""
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)  # type: ignore[arg-type]


class _Finder:
    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in (*UNUSED, "mxnet.base") else None
        if spec is None or spec.loader is None:
            return None
        if name in UNUSED:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        else:
            setattr(spec.loader, "exec_module", _patched(spec.loader.exec_module))  # noqa: B010 (mypy forbids the other)
        return spec


def _patched(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def execute_and_patch(base: ModuleType) -> None:
        execute(base)
        for name in ("_init_op_module", "_init_np_op_module"):
            setattr(base, name, _lazy(getattr(base, name)))

    return execute_and_patch


def _lazy(register: Callable[..., None]) -> Callable[..., None]:
    """MXNet's function that makes the operators of a namespace, made to make each when it is first called."""

    def register_lazily(*names: Any, **named: Any) -> None:
        *namespace, make = (*names, *named.values())  # MXNet names them in their order, if at all
        register(*namespace, functools.partial(_operator, make))

    return register_lazily


def _operator(make: Callable[..., Callable[..., Any]], handle: Any, name: str, shown: str) -> Callable[..., Any]:
    made: Callable[..., Any] | None = None

    def operator(*arguments: Any, **options: Any) -> Any:
        nonlocal made
        if made is None:
            made = make(handle, name, shown)
        return made(*arguments, **options)

    operator.__name__, operator.__doc__ = shown, ""  # MXNet replaces words in some of the texts
    return operator
