"""Starting from `.params`: a matching file is loaded, and anything else is refused in one line."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_runs import Place

from pipeline import model, runtime
from pipeline.config import Architecture
from pipeline.errors import WeightsError
from pipeline.model import weights

PLAIN = Architecture(name="plain", conv_arch=[(1, 4), (2, 6)], dense=[12, 8], classes=4)


@pytest.fixture(scope="module")
def mx() -> Any:
    return runtime.mxnet()


@pytest.fixture
def net(mx: Any) -> Any:
    made = model.build(PLAIN)
    made.initialize()
    return made


@pytest.fixture
def load(net: Any, mx: Any) -> Callable[[Path], None]:
    return lambda path: weights.load(net, path, [mx.cpu()])


def values(net: Any) -> dict[str, np.ndarray]:
    return {name: parameter.data().asnumpy() for name, parameter in model.parameters(net).items()}


def test_a_file_that_plain_gluon_wrote_with_nested_sequentials_is_taken_by_its_names(
    mx: Any, net: Any, load: Callable[[Path], None], tmp_path: Path
) -> None:
    nn = mx.gluon.nn
    origin = nn.Sequential()
    for convolutions, channels in PLAIN.conv_arch:
        block = nn.Sequential()
        for _ in range(convolutions):
            block.add(nn.Conv2D(channels, kernel_size=3, padding=1, activation="relu"))
        block.add(nn.MaxPool2D(pool_size=2, strides=2))
        origin.add(block)
    for width in PLAIN.dense:
        origin.add(nn.Dense(width, activation="relu"), nn.Dropout(0.5))
    origin.add(nn.Dense(PLAIN.classes))
    origin.initialize(mx.init.Xavier())
    images = mx.nd.random.uniform(shape=(3, 3, 32, 32))
    expected = origin(images).asnumpy()
    path = tmp_path / "origin.params"
    origin.save_parameters(str(path))
    load(path)
    assert (net(images).asnumpy() == expected).all()


def test_a_training_starts_from_a_finished_runs_weights_and_says_so(finished: Place, place: Place) -> None:
    path = finished.stage("train") / "model.params"
    place.configure(epochs=1, learning_rate=1e-9, init_from=str(path), augmentation={}, architecture={"dropout": 0.0})
    command = place.run()
    assert command.code == 0, command.output
    assert f"started from {path}" in command.output
    mx = runtime.mxnet()
    before, after = (mx.nd.load(str(file)) for file in (path, place.stage("train") / "model.params"))
    for name in before:
        if "running" not in name:
            assert np.allclose(before[name].asnumpy(), after[name].asnumpy(), atol=1e-6), name


def test_a_training_with_the_whitening_initialiser_starts_with_pairs_of_filters(place: Place) -> None:
    place.configure(
        epochs=1, learning_rate=1e-9, weight_decay=0.0, initializer="whitening", architecture={"conv_arch": [[1, 5]]}
    )
    assert place.run().code == 0
    weight = runtime.mxnet().nd.load(str(place.stage("train") / "model.params"))["0.0.weight"].asnumpy()
    assert weight.shape == (5, 3, 3, 3)
    assert np.allclose(weight[0:4:2], -weight[1:4:2], atol=1e-6)
    assert np.abs(weight).max() > 0.1


def test_what_does_not_fit_is_listed_with_names_and_shapes(
    mx: Any, net: Any, load: Callable[[Path], None], tmp_path: Path
) -> None:
    arrays = {name: mx.nd.array(value) for name, value in values(net).items()}
    arrays["0.0.weight"] = mx.nd.zeros((5, 3, 3, 3))
    arrays["7.extra"] = mx.nd.zeros((2,))
    del arrays["6.bias"]
    path = tmp_path / "other.params"
    mx.nd.save(str(path), arrays)
    before = values(net)
    with pytest.raises(WeightsError) as refusal:
        load(path)
    text = str(refusal.value)
    assert "does not fit the configured architecture" in text
    assert "missing: 6.bias (4,)" in text
    assert "unexpected: 7.extra (2,)" in text
    assert "other shape: 0.0.weight (5, 3, 3, 3) instead of (4, 3, 3, 3)" in text
    assert "\n" not in text
    assert all((before[name] == value).all() for name, value in values(net).items())


def test_every_foreign_file_is_called_by_its_name(load: Callable[[Path], None], mx: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a zip", "w") as archive:
        archive.writestr("inside", "x")
    (tmp_path / "an onnx").write_bytes(b"\x08\x07\x12\x05mxnet")
    (tmp_path / "a symbol").write_text('{"nodes": []}')
    (tmp_path / "a pickle").write_bytes(b"\x80\x04\x95")
    (tmp_path / "a page").write_text("<html>404</html>")
    (tmp_path / "noise").write_bytes(b"noise noise noise")
    (tmp_path / "nothing").touch()
    mx.nd.save(str(tmp_path / "no names"), [mx.nd.zeros((2,))])
    (tmp_path / "a folder").mkdir()
    expected = {
        "a zip": "found a ZIP archive",
        "an onnx": "found a protocol buffer (an ONNX model?)",
        "a symbol": "found JSON (the network's -symbol.json?)",
        "a pickle": "found a Python pickle",
        "a page": "found an HTML or XML page",
        "noise": "found an unknown kind of file",
        "nothing": "an empty file",
        "no names": "its 1 arrays have no names",
        "a folder": "found a folder or a pipe",
        "not there": "cannot read it: No such file or directory",
    }
    for name, words in expected.items():
        with pytest.raises(WeightsError) as refusal:
            load(tmp_path / name)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_file_cut_anywhere_is_refused_in_one_line(net: Any, load: Callable[[Path], None], tmp_path: Path) -> None:
    whole = tmp_path / "whole.params"
    net.save_parameters(str(whole))
    content = whole.read_bytes()
    chance = random.Random(1)
    lengths = [*range(1, 64), *(chance.randrange(64, len(content)) for _ in range(60)), len(content) - 1]
    cut = tmp_path / "cut.params"
    for length in lengths:
        cut.write_bytes(content[:length])
        with pytest.raises(WeightsError) as refusal:
            load(cut)
        assert "\n" not in str(refusal.value)


def test_a_refused_file_fails_the_task_with_one_line_and_no_traceback(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "wrong.params"
    path.write_bytes(b"PK\x03\x04")
    place.configure(init_from=str(path))
    command = place.run()
    assert command.code == 30
    assert f"{path}: found a ZIP archive" in command.output
    assert "Traceback" not in command.output
    assert not (place.stage("train") / "manifest.json").exists()
