"""The network in training: what is read from it between two steps."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pipeline import runtime
from pipeline.config import Architecture, Training
from pipeline.config.schema import LearningRateFactors
from pipeline.dataset.normalisation import Normalisation
from pipeline.training.network import Network

WIDE = {
    "name": "wide",
    "conv_arch": [[1, 16], [1, 32], [2, 64], [2, 128]],
    "batch_norm": True,
    "dense": [],
    "classes": 10,
}


def test_validation_right_after_a_step_uses_the_running_statistics_of_that_step():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (64, 3, 32, 32), np.uint8)
    labels = (np.arange(64) % 10).astype(np.float32)
    norm = Normalisation.measure(images)
    training = Training(epochs=1, batch_size=64, learning_rate=0.1)
    network = Network(msgspec.convert(WIDE, Architecture), training, runtime.devices("cpu"), "float32")
    network.initialize(0)
    network.start_epoch([])
    for step in range(4):
        network.step(norm.apply(images), labels, 0.1, step)
        at_once = network.evaluate(images, labels, norm, 64)
        runtime.mxnet().nd.waitall()
        assert at_once == network.evaluate(images, labels, norm, 64)


def test_an_output_layer_that_starts_at_zero_finds_all_classes_equally_likely_and_is_otherwise_as_before():
    states = []
    for zero_output in (False, True):
        training = Training(epochs=1, zero_output=zero_output, initializer="he")
        network = Network(msgspec.convert(WIDE, Architecture), training, runtime.devices("cpu:0,1"), "float32")
        network.initialize(0)
        states.append(network.state()[0])
        logits = network.logits(np.full((2, 3, 32, 32), 99, np.uint8), Normalisation(), 2)
        assert (not logits.any()) is zero_output
    without, zero = states
    assert all(np.array_equal(zero[name], without[name]) for name in zero if not name.startswith("4."))


@pytest.mark.parametrize("optimizer", ["sgd", "nag", "muon"])
def test_norm_and_output_layer_can_have_learning_rates_of_their_own(optimizer: str) -> None:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((16, 3, 32, 32), np.float32)
    labels = (np.arange(16) % 10).astype(np.float32)
    changes = []
    for factors in (LearningRateFactors(), LearningRateFactors(norm=8, output=0.5)):
        training = Training(epochs=1, optimizer=optimizer, weight_decay=0, lr_mult=factors)
        network = Network(msgspec.convert(WIDE, Architecture), training, runtime.devices("cpu"), "float32")
        network.initialize(0)
        network.start_epoch([])
        before = network.state()[0]
        network.step(images, labels, 1e-3, 0)
        after = network.state()[0]
        changes.append({name: after[name].astype(float) - before[name] for name in network.learned})
    for name, change in changes[0].items():
        factor = 8 if name.endswith((".beta", ".gamma")) else 0.5 if name in ("4.weight", "4.bias") else 1
        assert np.abs(changes[1][name] - factor * change).max() <= 1e-2 * np.abs(changes[1][name]).max(), name
