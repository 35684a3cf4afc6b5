"""The processor: its instruction sets, and AMX, the matrix unit of Intel Xeons since 2023, for bfloat16.

oneDNN 2.4, bundled with MXNet 1.9.1, has AMX convolutions several times as fast as those for AVX-512. It uses them only
on request, after the program has asked Linux for the registers (https://docs.kernel.org/arch/x86/xstate.html). float32
results stay identical to the bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

#: oneDNN's environment variable for the newest instruction set it may use, with its values with and without AMX.
VARIABLE, _WITH_AMX, _WITHOUT_AMX = "DNNL_MAX_CPU_ISA", "AVX512_CORE_AMX", "AVX512_CORE_BF16"

#: arch_prctl(2): system call number, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def enable_amx() -> None:
    """Enable AMX if the CPU has it, before MXNet's library is loaded. The user's own `DNNL_MAX_CPU_ISA` wins."""
    if os.environ.get(VARIABLE, _WITH_AMX) != _WITH_AMX or not {"amx_tile", "amx_bf16"} <= cpu_flags():
        return
    granted = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0
    os.environ[VARIABLE] = _WITH_AMX if granted else _WITHOUT_AMX


def amx_in_use() -> bool:
    """Whether MXNet, once loaded, computes bfloat16 with AMX."""
    return os.environ.get(VARIABLE) == _WITH_AMX and "amx_bf16" in cpu_flags()


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def cpu_flags() -> set[str]:
    """The first core's instruction sets, by their Linux names; empty if unknown."""
    return set(_cpu_line("flags").split())


def cpu_name() -> str:
    """The processor's model name, or "unknown"."""
    return _cpu_line("model name") or "unknown"


def _cpu_line(key: str) -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith(key)), "")
    return ""
