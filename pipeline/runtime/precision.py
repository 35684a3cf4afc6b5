"""Which precisions a device has."""

from __future__ import annotations

from pipeline.errors import DeviceError
from pipeline.runtime.cpu import cpu_flags, cpu_has_bfloat16
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
