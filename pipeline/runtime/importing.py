"""Import MXNet 1.9.1 with the workarounds it needs. If that fails, a `DeviceError` says what to do."""

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
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import DeviceError
from pipeline.process import spinning
from pipeline.process.cores import thread_environment
from pipeline.runtime.cpu import enable_amx
from pipeline.runtime.quick_import import quick_import

#: The NVIDIA libraries that mxnet-cu11x links against, in load order.
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

#: Operators for `plain_operator`, saved right after the import of MXNet, before AMP can replace them.
_plain: dict[tuple[Any, str], Any] = {}


@functools.lru_cache(maxsize=1)
def mxnet() -> Any:
    """Import and return `mxnet`. Raises `DeviceError`, with the reason and what to do, if it cannot be imported."""
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
            if sys.version_info >= (3, 12):  # MXNet needs distutils, which setuptools provides once imported
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
    """Start adapting OpenMP's waiting to the machine's load, see `pipeline.process.spinning`."""
    spinning.watch(mxnet().base._LIB, log)


def plain_operator(operators: Any, name: str) -> Any:
    """The original of an operator in `mxnet.ndarray` or `mxnet.symbol` that AMP may have wrapped with casts."""
    return _plain[operators, name]


def native_library() -> Any:
    """Load only MXNet's shared library: 20 times as fast, enough for a parameter server. Raises `DeviceError`."""
    _prepare()
    package = importlib.util.find_spec("mxnet")
    assert package is not None
    assert package.submodule_search_locations is not None
    try:
        return ctypes.CDLL(f"{package.submodule_search_locations[0]}/libmxnet.so", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DeviceError(_explain_library(str(error))) from error


def versions() -> dict[str, str]:
    """Versions of what a result depends on: this package, Python, numpy, Luigi and MXNet."""
    found = {"luigi-vgg": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("numpy", "luigi", *installed_mxnets()):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def installed_mxnets() -> list[str]:
    """Names of the installed MXNet distributions. `metadata.distributions` would read every package's metadata."""
    places = [place.name for folder in sys.path for place in Path(folder).glob("mxnet*-info")]
    matches = [re.fullmatch(r"(mxnet(?:[-_]cu\d+)?)-\d.*", place) for place in places]
    found = sorted({match[1].replace("_", "-") for match in matches if match})
    # A container's own build may have no such distribution.
    return found or (["mxnet"] if importlib.util.find_spec("mxnet") else [])


def check_python() -> None:
    """Raise `DeviceError` for a Python that MXNet does not support."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        found = ".".join(map(str, sys.version_info[:3]))
        raise DeviceError(f"Python {found} is not supported by mxnet 1.9.1: use Python 3.10, 3.11 or 3.12")


def _check_environment() -> None:
    """Refuse settings with which MXNet crashes (docstrings dropped), or hangs or aborts (no threads of some kind)."""
    if sys.flags.optimize > 1:
        raise DeviceError("mxnet 1.9.1 needs its docstrings: start Python without -OO and without PYTHONOPTIMIZE=2")
    for name, value in os.environ.items():
        if re.fullmatch(r"MXNET_\w+_(NTHREADS|THREADS)", name) and not re.fullmatch(r"[1-9]\d{0,3}", value):
            raise DeviceError(f"{name}: found {value!r}, expected a number of threads, at least 1: unset it")


def _prepare() -> None:
    """Check and set up what MXNet's library needs before it is loaded. It reads the number of threads only then."""
    installed = installed_mxnets()
    if not installed:
        raise DeviceError("mxnet is not installed: pip install mxnet==1.9.1")
    if len(installed) > 1:
        # Both install into the same folder; it holds the files of the last one.
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
            continue  # the system may have it; if not, the import names it
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
