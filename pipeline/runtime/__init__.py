"""MXNet, loaded and checked: the import with its workarounds, devices, precision.

The one module through which the others get `mx`. Every way in which it cannot work is a `DeviceError` with what to do.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pipeline import __version__
from pipeline.errors import DeviceError
from pipeline.process import spinning
from pipeline.process.cores import thread_environment

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

#: Compute capabilities for which the mxnet-cu112 … cu117 wheels carry machine code. They carry no PTX.
CUDA_CAPABILITIES = ((5, 0), (8, 9))

#: What `plain_convolution` gives; taken when MXNet is imported, before anyone can switch AMP on.
_convolutions: dict[Any, Any] = {}

#: The machine's load since MXNet was about to be loaded.
_load: list[spinning.Load] = []


@dataclass(frozen=True)
class Devices:
    """Where a stage computes: MXNet contexts, and the text that goes into logs and manifests."""

    contexts: list[Any]
    name: str

    @property
    def is_gpu(self) -> bool:
        return self.contexts[0].device_type == "gpu"


@functools.lru_cache(maxsize=1)
def mxnet() -> Any:
    """The imported `mxnet` module. Raises `DeviceError` when it cannot be imported, saying why and what to do."""
    _check_python()
    _check_environment()
    _check_packages()
    # Set before the import: MXNet reads it once, when its library is loaded.
    os.environ.update(thread_environment(os.environ))
    _load.append(spinning.Load())
    _preload_cuda_libraries()
    import numpy

    if "bool" not in vars(numpy):
        numpy.bool = numpy.bool_  # type: ignore[attr-defined]  # mxnet 1.9.1 still uses it, numpy 1.24 removed it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _provide_distutils()
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
    _convolutions.update({mx.nd: mx.nd.Convolution, mx.sym: mx.sym.Convolution})
    return mx


def adapt_to_load(tell: Callable[[str], None]) -> None:
    """From now on let OpenMP's threads wait as suits the machine's load, see `pipeline.process.spinning`."""
    library = mxnet().base._LIB
    if _load:  # else it already does
        spinning.watch(library, _load.pop(), tell)


def plain_convolution(operators: Any) -> Any:
    """`Convolution` of `mxnet.ndarray` or `mxnet.symbol` as it was before AMP replaced it by one that casts."""
    return _convolutions[operators]


def native_library() -> Any:
    """MXNet's shared library without its Python package, which takes twenty times as long to import.

    Enough for a parameter server. Raises `DeviceError` when it cannot be loaded.
    """
    _check_packages()
    os.environ.update(thread_environment(os.environ))
    _preload_cuda_libraries()
    import ctypes

    package = importlib.util.find_spec("mxnet")
    assert package is not None
    assert package.origin is not None
    try:
        return ctypes.CDLL(os.path.join(os.path.dirname(package.origin), "libmxnet.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DeviceError(_explain_library(str(error))) from error


def devices(device: str) -> Devices:
    """Turn the configuration's `device` into contexts: auto, cpu, gpu, gpu:0,1, cpu:0,1.

    `auto` takes the first GPU if MXNet can use one, else the CPU. Several CPU contexts share the same cores; they
    exist to test the code for several devices. Raises `DeviceError` when a GPU is asked for and unusable.
    """
    mx = mxnet()
    kind, _, numbers = device.partition(":")
    if kind == "auto":
        kind = "gpu" if _count_gpus(mx) > 0 else "cpu"
    if kind == "cpu":
        ids = [int(number) for number in numbers.split(",")] if numbers else [0]
        return Devices([mx.cpu(i) for i in ids], "cpu" if not numbers else f"cpu:{numbers}")
    return _gpus(mx, device, [int(number) for number in numbers.split(",")] if numbers else [0])


def versions() -> dict[str, str]:
    """The versions that decide about a result: this package, Python, numpy, Luigi and MXNet."""
    found = {"luigi-vgg": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("numpy", "luigi", *_installed_mxnets()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def resolve_precision(wanted: str, where: Devices) -> str:
    """The precision to train in.

    `auto`: bfloat16 on CPUs with avx512_bf16 or AMX, float16 on GPUs with tensor cores, else float32.
    """
    if wanted == "float16" and not where.is_gpu:
        raise DeviceError(
            "training.precision: found float16, which MXNet does not train on a CPU; use bfloat16 or auto"
        )
    if wanted == "bfloat16" and where.is_gpu:
        raise DeviceError("training.precision: found bfloat16, which MXNet has only on CPUs; use float16 or auto")
    if wanted == "bfloat16" and "avx512bw" not in cpu_flags():
        raise DeviceError(
            "training.precision: found bfloat16, which needs a processor with AVX-512; use float32 or auto"
        )
    if wanted != "auto":
        return wanted
    if where.is_gpu:
        return "float16" if _capability(where.contexts[0].device_id) >= (7, 0) else "float32"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """True when the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def cpu_flags() -> set[str]:
    """The instruction sets of the first core as Linux names them; empty when it does not tell."""
    return set(_cpu_line("flags").split())


def cpu_name() -> str:
    """The processor's model name, or "unknown"."""
    return _cpu_line("model name") or "unknown"


def _cpu_line(key: str) -> str:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith(key)), "")
    except OSError:
        line = ""
    return line.partition(":")[2].strip()


# --- the import's own traps ---------------------------------------------------------------------------------------


def _check_python() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        found = ".".join(map(str, sys.version_info[:3]))
        raise DeviceError(f"Python {found} is not supported by mxnet 1.9.1 here: use Python 3.10, 3.11 or 3.12")


def _check_environment() -> None:
    """MXNet does not start, or hangs, without a thread of each kind; optimised away, its docstrings make it crash."""
    if sys.flags.optimize > 1:
        raise DeviceError("mxnet 1.9.1 needs its docstrings: start Python without -OO and without PYTHONOPTIMIZE=2")
    for name, value in os.environ.items():
        if re.fullmatch(r"MXNET_\w+_(NTHREADS|THREADS)", name) and not re.fullmatch(r"[1-9]\d{0,3}", value):
            raise DeviceError(f"{name}: found {value!r}, expected a number of threads, at least 1: unset it")


def _check_packages() -> None:
    installed = _installed_mxnets()
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
        raise DeviceError(f"numpy {numpy_version} is too new for mxnet 1.9.1: pip install 'numpy>=1.23,<2'")


def _installed_mxnets() -> list[str]:
    names = {(item.metadata["Name"] or "").lower() for item in metadata.distributions()}
    found = sorted(name for name in names if re.fullmatch(r"mxnet(-cu\d+)?", name))
    # A container's own build may come without a distribution of that name.
    return found or (["mxnet"] if importlib.util.find_spec("mxnet") else [])


def _provide_distutils() -> None:
    """What MXNet takes from `distutils`, which Python 3.12 no longer has, comes with the import of setuptools.

    Without that, only where a .pth file of setuptools is heeded; and neither with SETUPTOOLS_USE_DISTUTILS=stdlib.
    """
    if sys.version_info >= (3, 12):
        os.environ.pop("SETUPTOOLS_USE_DISTUTILS", None)
        importlib.import_module("setuptools")


def _preload_cuda_libraries() -> None:
    """Load the pip-installed CUDA 11 libraries so that mxnet-cu11x finds them without LD_LIBRARY_PATH."""
    if not any(name.startswith("mxnet-cu11") for name in _installed_mxnets()):
        return
    import ctypes

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


# --- GPUs ---------------------------------------------------------------------------------------------------------


def _count_gpus(mx: Any) -> int:
    try:
        return int(mx.context.num_gpus())
    except Exception:  # MXNetError of a driver that is too old, for example; `auto` then means CPU
        return 0


def _gpus(mx: Any, device: str, ids: list[int]) -> Devices:
    """The GPUs of these numbers, each of which has computed something."""
    wheel = any(name.startswith("mxnet-cu") for name in _installed_mxnets())
    if not wheel and not mx.runtime.Features().is_enabled("CUDA"):
        raise DeviceError(
            f"device: found {device}, but the installed mxnet has no GPU code: run make gpu, or device: cpu"
        )
    try:
        count = int(mx.context.num_gpus())
    except Exception as error:
        text = str(error).splitlines()[0]
        advice = (
            "the NVIDIA driver is too old for CUDA 11" if "insufficient" in text else "is the NVIDIA driver loaded?"
        )
        raise DeviceError(f"device: found {device}, but CUDA says: {text}; {advice}") from error
    if count == 0:
        raise DeviceError(
            f"device: found {device}, but no NVIDIA GPU is visible (see nvidia-smi, CUDA_VISIBLE_DEVICES)"
        )
    for number in ids:
        if number >= count:
            raise DeviceError(f"device: found {device}, but only gpu:0 to gpu:{count - 1} are visible here")
        if wheel:  # another build, such as the one in NVIDIA's container, has code for other cards
            _check_capability(number)
        try:
            (mx.nd.ones((2, 2), ctx=mx.gpu(number)) + 1).asnumpy()
        except Exception as error:
            raise DeviceError(f"device: gpu:{number} does not compute: {_first_line(error)}") from error
    return Devices([mx.gpu(number) for number in ids], "gpu:" + ",".join(map(str, ids)))


def _check_capability(number: int) -> None:
    capability = _capability(number)
    low, high = CUDA_CAPABILITIES
    if capability != (0, 0) and not low <= capability <= high:
        raise DeviceError(
            f"device: gpu:{number} has compute capability {capability[0]}.{capability[1]}; the mxnet wheels have code "
            f"for {low[0]}.{low[1]} to {high[0]}.{high[1]} (Maxwell to Ada): use NVIDIA's MXNet container, "
            "or device: cpu"
        )


def _capability(number: int) -> tuple[int, int]:
    """The GPU's compute capability from the driver, or (0, 0) when the driver does not tell."""
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (0, 0)
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), number):
        return (0, 0)
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)
    return (major.value, minor.value)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = next((line for line in text if "no kernel image" in line), text[0] if text else type(error).__name__)
    return line.strip() + ("; this mxnet has no code for this card" if "no kernel image" in line else "")


def main() -> int:
    """Say what a training would compute on: `python -m pipeline.runtime [device]`; 1 when it cannot."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else "auto"
    try:
        where = devices(wanted)
        print(f"device {wanted}: {where.name} computes, with precision auto: {resolve_precision('auto', where)}")
        return 0
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1
