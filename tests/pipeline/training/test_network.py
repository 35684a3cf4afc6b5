"""The network in training: what is read from it between two steps."""

from __future__ import annotations

import msgspec
import numpy as np

from pipeline import runtime
from pipeline.config import Architecture, Training
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
