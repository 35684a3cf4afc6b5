"""Parameter files, including the original's; see tests/faults/test_init_from.py for what is refused."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import tracemalloc

import numpy as np
import pytest

from pipeline import model, training
from pipeline.errors import WeightsError
from pipeline.files import sha256_file
from pipeline.model import weights
from pipeline.process import child
from pipeline.runtime import mxnet

mx = mxnet()
nn = mx.gluon.nn

CONV_ARCH = [[1, 4], [1, 8], [2, 8], [2, 16], [2, 16]]


def original(conv_arch=CONV_ARCH, dense=(32, 16)):
    """VGG as it was published: Sequentials of Sequentials, saved with `save_parameters`."""

    def block(convolutions, channels):
        sequence = nn.Sequential()
        for _ in range(convolutions):
            sequence.add(nn.Conv2D(channels, kernel_size=3, padding=1, activation="relu"))
        sequence.add(nn.MaxPool2D(pool_size=2, strides=2))
        return sequence

    net = nn.Sequential()
    for convolutions, channels in conv_arch:
        net.add(block(convolutions, channels))
    for width in dense:
        net.add(nn.Dense(width, activation="relu"), nn.Dropout(0.5))
    net.add(nn.Dense(10))
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, 32, 32)))
    return net


@pytest.fixture
def architecture(small_architecture):
    return small_architecture(conv_arch=CONV_ARCH, batch_norm=False, dense=[32, 16])


@pytest.fixture
def saved(tmp_path):
    net, path = original(), tmp_path / "TinyVGG11.params"
    net.save_parameters(str(path))
    return net, path


def test_parameter_names_match_the_nested_sequentials_of_the_original(architecture, saved):
    net = model.build(architecture)
    assert list(model.parameters(net)) == list(saved[0]._collect_params_with_prefix())
    names = [f"{block}.{conv}" for block, (convs, _) in enumerate(CONV_ARCH) for conv in range(convs)]
    names += ["5", "7", "9"]
    assert sorted(model.parameters(net)) == sorted(f"{name}.{part}" for name in names for part in ("weight", "bias"))


def test_the_original_can_load_our_files(architecture, tmp_path):
    ours = model.build(architecture)
    ours.initialize()
    weights.save(ours, tmp_path / "model.params")
    theirs = original()
    theirs.load_parameters(str(tmp_path / "model.params"))
    images = mx.nd.random.uniform(shape=(5, 3, 32, 32))
    np.testing.assert_allclose(ours(images).asnumpy(), theirs(images).asnumpy(), rtol=1e-5, atol=1e-6)


def test_training_starts_from_the_file_in_init_from(prepared, saved):
    theirs, path = saved
    prepared.configure(
        architecture={"name": "old", "conv_arch": CONV_ARCH, "batch_norm": False, "dense": [32, 16]},
        training={"epochs": 1, "init_from": str(path), "learning_rate": 1e-12, "validation_images": 0},
    )
    manifest = training.train(prepared.chain(), child.Reporter(log=io.StringIO()))
    assert manifest["details"]["segments"][0]["how"] == f"started from {path}"
    trained = weights.read(prepared.folder("train") / "model.params")
    for name, parameter in theirs._collect_params_with_prefix().items():
        np.testing.assert_allclose(trained[name], parameter.data().asnumpy(), atol=1e-6)


def test_saving_is_atomic_and_leaves_no_debris(architecture, tmp_path, monkeypatch):
    net = model.build(architecture)
    net.initialize()
    path = tmp_path / "model.params"
    weights.save(net, path)
    before = sha256_file(path)

    def disk_full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        weights.save(net, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.params"]
    assert sha256_file(path) == before


def test_an_impossible_path_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot read it: File name too long"):
        weights.read(tmp_path / ("long" * 100))


def test_weights_that_differ_from_the_recorded_digest_are_refused(architecture, saved):
    net = model.build(architecture)
    weights.load_verified(net, saved[1], sha256_file(saved[1]), [mx.cpu()])
    with pytest.raises(WeightsError, match=r"damaged: its SHA-256 is .*SetAside --stage train"):
        weights.load_verified(net, saved[1], "0" * 64, [mx.cpu()])


def test_the_prefixes_of_a_module_checkpoint_are_removed(tmp_path):
    path = tmp_path / "module.params"
    mx.nd.save(str(path), {"arg:0.weight": mx.nd.ones((2,)), "aux:0.running_mean": mx.nd.zeros((2,))})
    assert sorted(weights.read(path)) == ["0.running_mean", "0.weight"]


def test_every_array_file_of_mxnet_is_read_like_mxnet_does(tmp_path):
    path, kinds = tmp_path / "kinds.params", ("float16", "float32", "float64", "uint8", "int32", "int8", "int64")
    mx.nd.save(str(path), {kind: mx.nd.arange(6).reshape((2, 3)).astype(kind) for kind in kinds})
    expected = mx.nd.load(str(path))
    found = weights.read(path)
    assert sorted(found) == sorted(kinds)
    for kind in kinds:
        assert found[kind].dtype == kind
        np.testing.assert_array_equal(found[kind], expected[kind].asnumpy())
    bfloat16 = struct.pack("<QQQIiiqiiiHH", 0x112, 0, 1, 0xF993FAC9, 0, 1, 2, 1, 0, 12, 0x3FC0, 0xC040)
    path.write_bytes(bfloat16 + struct.pack("<QQ", 1, 1) + b"w")
    np.testing.assert_array_equal(weights.read(path)["w"], [1.5, -3.0])


def test_files_of_older_mxnet_versions_are_read(tmp_path):
    path, numbers = tmp_path / "old.params", np.array([[1, 2, 3]], "<f4")
    head = struct.pack("<QQQ", 0x112, 0, 1)
    tail = struct.pack("<iii", 1, 0, 0) + numbers.tobytes() + struct.pack("<QQ", 1, 1) + b"w"
    for start in (struct.pack("<III", 2, 1, 3), struct.pack("<Iiqq", 0xF993FAC8, 2, 1, 3)):
        path.write_bytes(head + start + tail)
        np.testing.assert_array_equal(mx.nd.load(str(path))["w"].asnumpy(), numbers)
        np.testing.assert_array_equal(weights.read(path)["w"], numbers)


def test_no_flipped_bit_allocates_more_than_the_size_of_the_file(saved):
    _, path = saved
    content = path.read_bytes()
    chance = random.Random(0)
    places = [*range(24 * 8), *(chance.randrange(len(content) * 8) for _ in range(300))]
    places += [8 * (len(content) - 1 - number) for number in range(100)]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        tracemalloc.start()
        with contextlib.suppress(WeightsError):
            weights.read(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * len(content) + 200_000, place


def test_weights_that_are_not_finite_or_not_dense_are_refused(architecture, saved):
    theirs, path = saved
    arrays = {name: parameter.data() for name, parameter in theirs._collect_params_with_prefix().items()}
    arrays["0.0.weight"][0, 0, 0, 0] = np.nan
    mx.nd.save(str(path), arrays)
    with pytest.raises(WeightsError, match=r"1 of the 108 numbers of 0\.0\.weight are not finite"):
        weights.load(model.build(architecture), path, [mx.cpu()])
    arrays["5.weight"] = arrays["5.weight"].tostype("row_sparse")
    mx.nd.save(str(path), arrays)
    with pytest.raises(WeightsError, match="an array is sparse"):
        weights.load(model.build(architecture), path, [mx.cpu()])
