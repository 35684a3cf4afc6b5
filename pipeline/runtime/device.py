"""Devices: turn the configuration's `device` into working MXNet contexts, and check their precisions."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DeviceError
from pipeline.runtime.cpu import cpu_flags, cpu_has_bfloat16
from pipeline.runtime.importing import installed_mxnets, mxnet
from pipeline.text import cause

#: Lowest and highest compute capability for which the mxnet-cu112 … cu117 wheels have machine code. They have no PTX.
CUDA_CAPABILITIES = ((5, 0), (8, 9))


@dataclass(frozen=True)
class Devices:
    """Where a stage computes: MXNet contexts, and their name for logs and manifests."""

    contexts: list[Any]
    name: str

    @property
    def is_gpu(self) -> bool:
        return self.contexts[0].device_type == "gpu"


def devices(device: str) -> Devices:
    """Turn the configuration's `device` into contexts: auto, cpu, gpu, gpu:0,1, cpu:0,1 (same cores, for tests).

    `auto` selects the first GPU if MXNet can use one, else the CPU. Raises `DeviceError` if a requested GPU is
    unusable, and also for `auto` if a GPU build of MXNet has no code for the card that it finds.
    """
    mx = mxnet()
    kind, _, numbers = device.partition(":")
    if kind == "auto":
        kind = "cpu"
        with contextlib.suppress(Exception):  # for example, MXNetError for an outdated driver
            kind = "gpu" if mx.context.num_gpus() > 0 else "cpu"
    ids = [int(number) for number in (numbers or "0").split(",")]
    if kind == "cpu":
        return Devices([mx.cpu(number) for number in ids], f"cpu:{numbers}" if numbers else "cpu")
    return _gpus(mx, device, ids)


def resolve_precision(requested: str, target: Devices) -> str:
    """Precision to train in. `auto`: bfloat16 on CPUs that have it, float16 on GPUs with tensor cores, else float32."""
    if requested == "float16" and not target.is_gpu:
        raise DeviceError(
            "training.precision: found float16, which MXNet does not train on a CPU; use bfloat16 or auto"
        )
    if requested == "bfloat16" and target.is_gpu:
        raise DeviceError("training.precision: found bfloat16, which MXNet has only on CPUs; use float16 or auto")
    if requested == "bfloat16" and "avx512bw" not in cpu_flags():
        raise DeviceError(
            "training.precision: found bfloat16, which needs a processor with AVX-512; use float32 or auto"
        )
    if requested != "auto":
        return requested
    if target.is_gpu:
        return "float16" if gpu_capability(target.contexts[0].device_id) >= (7, 0) else "float32"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def _gpus(mx: Any, device: str, ids: list[int]) -> Devices:
    """Return the GPUs with these ids after a test computation on each."""
    wheel = any(name.startswith("mxnet-cu") for name in installed_mxnets())
    if not wheel and not mx.runtime.Features().is_enabled("CUDA"):
        for number in ids:
            _check_capability(number)  # do not advise a GPU wheel that has no code for the card
        raise DeviceError(
            f"device: found {device}, but the installed mxnet has no GPU code: run make gpu, or set device: cpu"
        )
    try:
        count = int(mx.context.num_gpus())
    except Exception as error:
        old = "insufficient" in str(error)
        advice = "the NVIDIA driver is too old for CUDA 11" if old else "is the NVIDIA driver loaded?"
        raise DeviceError(f"device: found {device}, but CUDA says: {cause(error)}; {advice}") from error
    if count == 0:
        raise DeviceError(
            f"device: found {device}, but no NVIDIA GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    for number in ids:
        if number >= count:
            raise DeviceError(f"device: found {device}, but only gpu:0 to gpu:{count - 1} are visible here")
        if wheel:  # other builds, such as NVIDIA's container, have code for other cards
            _check_capability(number)
        try:
            (mx.nd.ones((2, 2), ctx=mx.gpu(number)) + 1).asnumpy()
        except Exception as error:
            hint = "; this mxnet has no code for this card" if "no kernel image" in str(error) else ""
            raise DeviceError(f"device: gpu:{number} failed a test computation: {cause(error)}{hint}") from error
    return Devices([mx.gpu(number) for number in ids], "gpu:" + ",".join(map(str, ids)))


def _check_capability(number: int) -> None:
    capability = gpu_capability(number)
    low, high = CUDA_CAPABILITIES
    if capability != (0, 0) and not low <= capability <= high:
        raise DeviceError(
            f"device: gpu:{number} has compute capability {capability[0]}.{capability[1]}; the mxnet wheels have code "
            f"for {low[0]}.{low[1]} to {high[0]}.{high[1]} (Maxwell to Ada): use NVIDIA's MXNet container, "
            "or set device: cpu"
        )


def gpu_capability(number: int) -> tuple[int, int]:
    """The GPU's compute capability as reported by the driver, or (0, 0) if unknown."""
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
