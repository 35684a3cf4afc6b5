"""AMX: enabled if processor and kernel support it, with the results of bfloat16 without it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.runtime import cpu, cpu_flags

has_amx = pytest.mark.skipif(not {"amx_tile", "amx_bf16"} <= cpu_flags(), reason="a processor without AMX")

#: Largest relative difference of a convolution in bfloat16, forwards and backwards, from the same in float32.
CONVOLUTIONS = """
import numpy as np
from pipeline.runtime import amx_in_use, mxnet, plain_operator
mx = mxnet()
from mxnet.contrib import amp
amp.init("bfloat16")
random, worst = np.random.default_rng(0), 0.0
for count, inputs, outputs, side, kernel in [
    (3, 3, 16, 32, 2), (2, 24, 64, 31, 3), (5, 32, 48, 15, 3), (4, 64, 256, 7, 3), (7, 256, 100, 3, 3), (1, 1, 2, 4, 3)
]:
    x = mx.nd.array(random.standard_normal((count, inputs, side, side)))
    w = mx.nd.array(random.standard_normal((outputs, inputs, kernel, kernel)))
    found = []
    for convolution in (mx.nd.Convolution, plain_operator(mx.nd, "Convolution")):
        x.attach_grad(), w.attach_grad()
        with mx.autograd.record():
            y = convolution(x, w, kernel=(kernel, kernel), num_filter=outputs, no_bias=True).astype("float32")
        y.backward(y.detach())
        found.append([value.asnumpy() for value in (y, x.grad, w.grad)])
    worst = max([worst, *(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(*found))])
print(amx_in_use(), worst)
"""


def computed(**environment):
    """Whether AMX was used, oneDNN's own log, and the largest difference."""
    command = [sys.executable, "-W", "ignore", "-c", CONVOLUTIONS]
    environment = {**os.environ, "DNNL_VERBOSE": "1", **environment}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    used, worst = out.split()[-2:]
    return used == "True", out, float(worst)


@has_amx
def test_convolutions_in_bfloat16_use_amx_and_agree_with_float32():
    used, log, worst = computed(DNNL_MAX_CPU_ISA="AVX512_CORE_AMX")
    assert used
    assert "avx512_core_amx_bf16" in log
    assert worst < 0.01


@has_amx
def test_the_users_limit_for_onednn_wins():
    used, log, worst = computed(DNNL_MAX_CPU_ISA="AVX512_CORE_BF16")
    assert not used
    assert "amx" not in log
    assert worst < 0.01


@pytest.mark.parametrize(
    ("given", "flags", "expected"),
    [
        (None, {"avx512_bf16"}, None),
        (None, {"amx_bf16"}, None),
        ("AVX2", {"amx_tile", "amx_bf16"}, "AVX2"),
        ("AVX512_CORE_AMX", set(), "AVX512_CORE_AMX"),
    ],
)
def test_nothing_changes_without_amx_or_if_the_user_has_decided(monkeypatch, given, flags, expected):
    monkeypatch.delenv(cpu.VARIABLE, raising=False)
    if given:
        monkeypatch.setenv(cpu.VARIABLE, given)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: flags)
    cpu.enable_amx()
    assert os.environ.get(cpu.VARIABLE) == expected
    assert not cpu.amx_in_use()


def test_amx_stays_off_if_the_kernel_refuses_the_registers(monkeypatch):
    class Kernel:
        def syscall(self, *arguments):
            return -1

    monkeypatch.delenv(cpu.VARIABLE, raising=False)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"amx_tile", "amx_bf16"})
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: Kernel())
    cpu.enable_amx()
    assert os.environ.pop(cpu.VARIABLE) == "AVX512_CORE_BF16"
