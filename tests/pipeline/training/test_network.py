"""The network in training: its initial weights, validation between steps, learning rates per layer."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from pipeline import runtime
from pipeline.config import Architecture, Training
from pipeline.config.schema import LearningRateFactors
from pipeline.dataset.normalisation import Normalisation
from pipeline.training.network import Network

LABELS = (np.arange(64) % 10).astype(np.float32)


def network(device: str = "cpu", **training) -> Network:
    keys = {"conv_arch": [[1, 16], [1, 32], [2, 64], [2, 128]], "batch_norm": True, "dense": [], "classes": 10}
    architecture = msgspec.convert({"name": "wide", **keys}, Architecture)
    made = Network(architecture, Training(epochs=1, **training), runtime.devices(device), "float32")
    made.initialize(0)
    made.start_epoch([])
    return made


def test_validation_right_after_a_step_uses_the_running_statistics_of_that_step():
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), np.uint8)
    norm, trained = Normalisation.measure(images), network()
    for step in range(4):
        trained.step(norm.apply(images), LABELS, 0.1, step)
        at_once = trained.evaluate(images, LABELS, norm, 64)
        runtime.mxnet().nd.waitall()
        assert at_once == trained.evaluate(images, LABELS, norm, 64)


def test_a_zero_output_layer_makes_all_classes_equally_likely_and_changes_no_other_layer():
    states = []
    for zero_output in (False, True):
        made = network("cpu:0,1", zero_output=zero_output, initializer="he")
        states.append(made.state()[0])
        loss, _ = made.evaluate(np.full((2, 3, 32, 32), 99, np.uint8), LABELS[:2], Normalisation(), 2)
        assert (loss == pytest.approx(math.log(10))) is zero_output
    without, zero = states
    assert all(np.array_equal(zero[name], without[name]) for name in zero if not name.startswith("4."))


@pytest.mark.parametrize("optimizer", ["sgd", "nag", "muon"])
def test_norm_and_output_layer_can_have_their_own_learning_rates(optimizer: str) -> None:
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32), np.float32)
    changes = []
    for factors in (LearningRateFactors(), LearningRateFactors(norm=8, output=0.5)):
        trained = network(optimizer=optimizer, weight_decay=0, lr_mult=factors)
        before = trained.state()[0]
        trained.step(images, LABELS[:16], 1e-3, 0)
        after = trained.state()[0]
        changes.append({name: after[name].astype(float) - before[name] for name in trained.learned})
    for name, change in changes[0].items():
        factor = 8 if name.endswith((".beta", ".gamma")) else 0.5 if name in ("4.weight", "4.bias") else 1
        assert np.abs(changes[1][name] - factor * change).max() <= 1e-2 * np.abs(changes[1][name]).max(), name
