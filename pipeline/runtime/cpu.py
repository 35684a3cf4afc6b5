"""The processor: its instructions, and AMX, the matrix unit of Intel's Xeons since 2023, for bfloat16.

oneDNN 2.4, which MXNet 1.9.1 contains, has convolutions for it that are several times as fast as those for AVX-512,
but uses them only on request, and leaves it to the program to ask Linux for the unit's registers
(https://docs.kernel.org/arch/x86/xstate.html). What is computed in float32 stays the same to the bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

#: oneDNN's variable for the newest instructions that it may use, and the value that includes AMX.
VARIABLE, _WITH_AMX, _WITHOUT = "DNNL_MAX_CPU_ISA", "AVX512_CORE_AMX", "AVX512_CORE_BF16"

#: arch_prctl(2): number of the system call, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def enable_amx() -> None:
    """Let this process use AMX, if it is there, before MXNet's library is loaded; another `DNNL_MAX_CPU_ISA` wins."""
    if os.environ.get(VARIABLE, _WITH_AMX) != _WITH_AMX or not {"amx_tile", "amx_bf16"} <= cpu_flags():
        return
    granted = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0
    os.environ[VARIABLE] = _WITH_AMX if granted else _WITHOUT


def amx_in_use() -> bool:
    """Whether bfloat16 is computed with AMX, once MXNet is loaded."""
    return os.environ.get(VARIABLE) == _WITH_AMX and "amx_bf16" in cpu_flags()


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
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith(key)), "")
    return ""
