"""Which precisions a device has."""

from __future__ import annotations

from pipeline.errors import DeviceError
from pipeline.runtime.device import Devices, gpu_capability


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
        return "float16" if gpu_capability(where.contexts[0].device_id) >= (7, 0) else "float32"
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
