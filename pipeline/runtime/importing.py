"""Importing MXNet 1.9.1: the workarounds that it needs, and a `DeviceError` with what to do where it cannot work."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

from pipeline import __version__
from pipeline.errors import DeviceError
from pipeline.process import spinning
from pipeline.process.cores import thread_environment
from pipeline.runtime.cpu import enable_amx
from pipeline.runtime.quick_import import quick_import

#: The NVIDIA libraries that mxnet-cu11x is linked against, in the order in which they must be loaded.
CUDA_LIBRARIES = (
    ("nvidia-cuda-runtime-cu11", "cuda_runtime/lib/libcudart.so.11.0"),
    ("nvidia-cuda-nvrtc-cu11", "cuda_nvrtc/lib/libnvrtc.so.11.2"),
    ("nvidia-nvtx-cu11", "nvtx/lib/libnvToolsExt.so.1"),
    ("nvidia-cublas-cu11", "cublas/lib/libcublasLt.so.11"),
    ("nvidia-cublas-cu11", "cublas/lib/libcublas.so.11"),
    ("nvidia-cufft-cu11", "cufft/lib/libcufft.so.10"),
    ("nvidia-curand-cu11", "curand/lib/libcurand.so.10"),
    ("nvidia-cusparse-cu11", "cusparse/lib/libcusparse.so.11"),
    ("nvidia-cusolver-cu11", "cusolver/lib/libcusolver.so.11"),
    ("nvidia-cudnn-cu11", "cudnn/lib/libcudnn.so.8"),
    ("nvidia-nccl-cu11", "nccl/lib/libnccl.so.2"),
)

#: What `plain_operator` gives; taken when MXNet is imported, before anyone can switch AMP on.
_plain: dict[tuple[Any, str], Any] = {}


@functools.lru_cache(maxsize=1)
def mxnet() -> Any:
    """The imported `mxnet` module. Raises `DeviceError` when it cannot be imported, saying why and what to do."""
    check_python()
    _check_environment()
    _prepare()
    enable_amx()
    import numpy

    if "bool" not in vars(numpy):
        numpy.bool = numpy.bool_  # type: ignore[attr-defined]  # mxnet 1.9.1 still uses it, numpy 1.24 removed it
    try:
        with warnings.catch_warnings(), quick_import():
            warnings.simplefilter("ignore")
            if sys.version_info >= (3, 12):  # distutils, which MXNet needs, comes with the import of setuptools
                os.environ.pop("SETUPTOOLS_USE_DISTUTILS", None)
                importlib.import_module("setuptools")
            import mxnet as mx
    except OSError as error:
        raise DeviceError(_explain_library(str(error))) from error
    except ImportError as error:
        hint = (
            "pip install setuptools"
            if re.search("distutils|setuptools", str(error))
            else "pip install mxnet==1.9.1 'numpy<2'"
        )
        raise DeviceError(f"mxnet cannot be imported: {error}; try {hint}") from error
    for name in ("Convolution", "FullyConnected"):
        _plain.update({(operators, name): getattr(operators, name) for operators in (mx.nd, mx.sym)})
    return mx


def adapt_to_load(log: Callable[[str], None]) -> None:
    """From now on adapt how OpenMP waits to the machine's load, see `pipeline.process.spinning`."""
    spinning.watch(mxnet().base._LIB, log)


def plain_operator(operators: Any, name: str) -> Any:
    """An operator of `mxnet.ndarray` or `mxnet.symbol` as it was before AMP replaced it by one that casts."""
    return _plain[operators, name]


def native_library() -> Any:
    """MXNet's shared library alone, enough for a parameter server and loaded 20 times as fast; raises `DeviceError`."""
    _prepare()
    package = importlib.util.find_spec("mxnet")
    assert package is not None
    assert package.submodule_search_locations is not None
    try:
        return ctypes.CDLL(f"{package.submodule_search_locations[0]}/libmxnet.so", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DeviceError(_explain_library(str(error))) from error


def versions() -> dict[str, str]:
    """The versions that decide about a result: this package, Python, numpy, Luigi and MXNet."""
    found = {"luigi-vgg": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("numpy", "luigi", *installed_mxnets()):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.cache
def installed_mxnets() -> list[str]:
    """The names of the installed distributions of MXNet. Looked up once: it reads about all distributions."""
    names = {(item.metadata["Name"] or "").lower() for item in metadata.distributions()}
    found = sorted(name for name in names if re.fullmatch(r"mxnet(-cu\d+)?", name))
    # A container's own build may come without a distribution of that name.
    return found or (["mxnet"] if importlib.util.find_spec("mxnet") else [])


def check_python() -> None:
    """Raise `DeviceError` for a Python that MXNet does not support."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        found = ".".join(map(str, sys.version_info[:3]))
        raise DeviceError(f"Python {found} is not supported by mxnet 1.9.1: use Python 3.10, 3.11 or 3.12")


def _check_environment() -> None:
    """MXNet does not start, or hangs, without a thread of each kind; optimised away, its docstrings make it crash."""
    if sys.flags.optimize > 1:
        raise DeviceError("mxnet 1.9.1 needs its docstrings: start Python without -OO and without PYTHONOPTIMIZE=2")
    for name, value in os.environ.items():
        if re.fullmatch(r"MXNET_\w+_(NTHREADS|THREADS)", name) and not re.fullmatch(r"[1-9]\d{0,3}", value):
            raise DeviceError(f"{name}: found {value!r}, expected a number of threads, at least 1: unset it")


def _prepare() -> None:
    """All that MXNet's library needs before it is loaded; it reads the number of threads once, then."""
    installed = installed_mxnets()
    if not installed:
        raise DeviceError("mxnet is not installed: pip install mxnet==1.9.1")
    if len(installed) > 1:
        # Both own the same folder; what is in it are the files of the one installed last.
        raise DeviceError(
            f"{' and '.join(installed)} are both installed and overwrite each other: "
            f"pip uninstall -y {' '.join(installed)}, then install the one you want"
        )
    numpy_version = metadata.version("numpy")
    if int(numpy_version.split(".")[0]) >= 2:
        raise DeviceError(f"numpy {numpy_version} is too new for mxnet 1.9.1: pip install 'numpy>=1.23.5,<2'")
    os.environ.update(thread_environment(os.environ))
    if installed[0].startswith("mxnet-cu11"):
        _preload_cuda_libraries()


def _preload_cuda_libraries() -> None:
    """Load the pip-installed CUDA 11 libraries so that mxnet-cu11x finds them without LD_LIBRARY_PATH."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    for package, path in CUDA_LIBRARIES:
        file = next((f"{root}/{path}" for root in roots if os.path.exists(f"{root}/{path}")), None)
        if file is None:
            continue  # perhaps the system has it; if not, the import names what is missing
        try:
            ctypes.CDLL(file, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise DeviceError(
                f"{package}: cannot load {file}: {error}; pip install --force-reinstall {package}"
            ) from error


def _explain_library(message: str) -> str:
    missing = re.match(r"(lib[\w+.-]+): cannot open shared object file", message)
    if not missing:
        return f"mxnet cannot be imported: {message.splitlines()[0]}; try pip install --force-reinstall mxnet==1.9.1"
    name = missing[1]
    if name.startswith("libcuda.so"):
        return (
            "mxnet cannot be imported: no NVIDIA driver (libcuda.so.1) on this machine: install one, "
            "or use mxnet==1.9.1"
        )
    for package, path in CUDA_LIBRARIES:
        if path.endswith(name):
            return f"mxnet cannot be imported: {name} is missing: pip install {package} (or run make gpu)"
    return f"mxnet cannot be imported: the library {name} is missing: install it with the system's package manager"
