"""The Muon optimizer: orthogonal updates, the kernels' fixed norm, and exact resuming."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline import runtime
from pipeline.config import Architecture, Training
from pipeline.training import muon
from pipeline.training.network import Network

ARCHITECTURE = Architecture(name="tiny", conv_arch=[(1, 8), (1, 16)], batch_norm=True, dense=[], classes=10)
TRAINING = Training(epochs=1, batch_size=16, optimizer="muon", learning_rate=0.1, momentum=0.6, weight_decay=1e-3)


@pytest.fixture(scope="module")
def mx() -> Any:
    return runtime.mxnet()


def network() -> Network:
    made = Network(ARCHITECTURE, TRAINING, runtime.devices("cpu"), "float32")
    made.initialize(0)
    made.start_epoch([])
    return made


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(step)
    return generator.standard_normal((16, 3, 32, 32), np.float32), (np.arange(16) % 10).astype(np.float32)


def orthogonal(mx: Any, matrix: np.ndarray) -> np.ndarray:
    shape = matrix.shape
    return muon.orthogonal(mx.nd, mx.nd.array(matrix), mx.nd.eye(min(shape)), shape).asnumpy()


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (24, 24), (130, 300), (300, 130)])
def test_the_update_keeps_the_singular_vectors_and_levels_the_singular_values(mx: Any, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape, np.float32) * 1e-3
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonal(mx, matrix) @ right.T
    wide = sizes > 0.1 * sizes[0]
    assert np.all(np.diag(found)[wide] > 0.5)
    assert np.all(np.diag(found) < 1.3)
    assert np.abs(found - np.diag(np.diag(found))).max() < 1e-4


#: Prints the singular values of a large kernel's update in bfloat16. In its own process, because AMP stays on.
IN_BFLOAT16 = """
import numpy as np
from pipeline.runtime import mxnet
from pipeline.training import muon
mx = mxnet()
from mxnet.contrib import amp
amp.init("bfloat16")
matrix = mx.nd.array(np.random.default_rng(0).standard_normal((130, 1300), np.float32))
found = muon.orthogonal(mx.nd, matrix, mx.nd.eye(130), matrix.shape)
sizes = np.linalg.svd(found.asnumpy(), compute_uv=False)
muon.FLOAT32_SIDE = 1000
exact = muon.orthogonal(mx.nd, matrix, mx.nd.eye(130), matrix.shape)
print(np.dtype(found.dtype).name, sizes.min(), sizes.max(), abs(found - exact).max().asscalar())
"""


@pytest.mark.skipif("avx512bw" not in runtime.cpu_flags(), reason="a processor without bfloat16 for oneDNN")
def test_large_products_in_bfloat16_are_accurate_enough() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_BFLOAT16], capture_output=True, text=True, check=True
    )
    dtype, smallest, largest, difference = done.stdout.split()
    assert dtype == "float32"
    assert 1e-4 < float(difference) < 0.1
    assert 0.6 < float(smallest) < float(largest) < 1.3


def test_a_zero_matrix_stays_zero(mx: Any) -> None:
    assert not orthogonal(mx, np.zeros((4, 9), np.float32)).any()


def test_it_updates_all_kernels_but_the_first_by_the_learning_rate(mx: Any) -> None:
    names = {"0.0.weight": (8, 3, 3, 3), "1.0.weight": (16, 8, 3, 3), "1.1.gamma": (16,), "2.weight": (10, 1024)}
    assert [name for name, shape in names.items() if muon.is_hidden(name, shape)] == ["1.0.weight"]
    one = network()
    before = one.state()[0]["1.0.weight"]
    one.step(*batch(0), 0.1, 0)
    one.step(*batch(1), 0.0, 1)  # only rescales the kernel
    after = one.state()[0]["1.0.weight"].reshape(16, -1)
    assert np.linalg.norm(after) == pytest.approx(4.0, rel=1e-5)
    other = network()
    other.step(*batch(0), 0.1, 0)
    start = before.reshape(16, -1) * 4 / np.linalg.norm(before)
    sizes = np.linalg.svd(other.state()[0]["1.0.weight"].reshape(16, -1) - start, compute_uv=False)
    assert sizes.max() < 0.13
    assert np.median(sizes) > 0.06


def test_a_restored_network_trains_to_the_same_bytes() -> None:
    whole = network()
    for step in range(6):
        whole.step(*batch(step), 0.1, step)
    first = network()
    for step in range(3):
        first.step(*batch(step), 0.1, step)
    second = network()
    second.set_state(*first.state())
    for step in range(3, 6):
        second.step(*batch(step), 0.1, step)
    for one, other in zip(whole.state(), second.state(), strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_it_learns_without_batch_normalisation_too() -> None:
    plain = msgspec.structs.replace(ARCHITECTURE, batch_norm=False, dense=[16])
    made = Network(plain, msgspec.structs.replace(TRAINING, learning_rate=0.1), runtime.devices("cpu"), "float32")
    made.initialize(0)
    losses = []
    for step in range(40):
        made.start_epoch([])
        made.step(*batch(0), 0.1, step)
        losses.append(made.sums()[0][0])
    assert losses[-1] < 0.7 * losses[0]
    assert np.linalg.norm(made.state()[0]["1.0.weight"]) == pytest.approx(4.0, rel=0.1)
