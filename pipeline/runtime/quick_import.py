"""Import MXNet lazily, in a third of the time.

MXNet 1.9.1 spends most of its import compiling 2,500 functions, one per operator and namespace, of which a network uses
a few dozen. Inside `quick_import`, each is compiled on its first call, and modules that training never uses are loaded
on first use. `distutils` comes from the standard library while it is there (until Python 3.11): setuptools' copy, which
otherwise replaces it, would take another 50 ms.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

#: Modules that are loaded, with their own imports, on first use.
ON_FIRST_USE = ("mxnet.contrib.onnx", "mxnet.test_utils", "requests")


@contextlib.contextmanager
def quick_import() -> Iterator[None]:
    """Make an import of MXNet inside this context lazy."""
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
    collecting = gc.isenabled()
    gc.disable()  # thousands of objects, no garbage: a tenth of the time
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        sys.meta_path.remove(_Finder)  # type: ignore[arg-type]


class _Finder:
    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        ours = name in (*ON_FIRST_USE, "mxnet.base", "distutils")
        spec = importlib.machinery.PathFinder.find_spec(name, path) if ours else None
        if spec is None or spec.loader is None:
            return None
        if name in ON_FIRST_USE:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        elif name == "mxnet.base":
            setattr(spec.loader, "exec_module", _patched(spec.loader.exec_module))  # noqa: B010 (mypy forbids the other)
        return spec


def _patched(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def execute_and_patch(base: ModuleType) -> None:
        execute(base)
        for name in ("_init_op_module", "_init_np_op_module"):
            setattr(base, name, _lazy(getattr(base, name)))

    return execute_and_patch


def _lazy(register: Callable[..., None]) -> Callable[..., None]:
    """Wrap MXNet's function that makes the operators of a namespace, so that each is made on its first call."""

    def register_lazily(*names: Any, **named: Any) -> None:
        *namespace, make = (*names, *named.values())  # MXNet passes keywords, if any, in order
        register(*namespace, functools.partial(_operator, make))

    return register_lazily


def _operator(make: Callable[..., Callable[..., Any]], handle: Any, name: str, public: str) -> Callable[..., Any]:
    made: Callable[..., Any] | None = None

    def operator(*arguments: Any, **options: Any) -> Any:
        nonlocal made
        if made is None:
            made = make(handle, name, public)
        return made(*arguments, **options)

    operator.__name__, operator.__doc__ = public, ""  # MXNet edits some of the docstrings, so None will not do
    return operator
