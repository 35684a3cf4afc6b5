"""Batches made on a device are the batches made in numpy. Run on CPU contexts, which share the code with GPUs."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pipeline import runtime
from pipeline.config import Architecture, Training
from pipeline.dataset import loader
from pipeline.dataset.augmentation import DeviceImages
from pipeline.dataset.normalisation import Normalisation
from pipeline.training.network import Network

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
LABELS = (np.arange(40) % 4).astype(np.uint8)
NORM = Normalisation.measure(IMAGES)
AUGMENTATIONS = (
    {},
    {"flip": "random"},
    {"flip": "alternating"},
    {"pad_crop": 4},
    {"pad_crop": 2, "padding": "reflect"},
    {"cutout": 8},
    {"pad_crop": 2, "flip": "random", "cutout": 5},
)


def made_of(augmentation: dict, batch_size: int = 12) -> tuple[loader.TrainingLoader, Training]:
    keys = {"epochs": 1, "batch_size": batch_size, "augmentation": augmentation, "normalize": True}
    training = msgspec.convert(keys, Training)
    return loader.TrainingLoader(IMAGES, LABELS, np.arange(40), training, NORM), training


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_a_device_makes_the_very_batches_that_numpy_makes(augmentation):
    source, training = made_of(augmentation)
    held = DeviceImages(IMAGES, training.augmentation, NORM, runtime.mxnet().cpu(0))
    for epoch in range(2):
        pairs = list(zip(source.epoch(epoch), source.plans(epoch), strict=True))
        assert len(pairs) == 4  # three of twelve images and one of four
        for (images, labels), (plan, same_labels) in pairs:
            np.testing.assert_array_equal(held.batch(plan).asnumpy(), images)
            np.testing.assert_array_equal(same_labels, labels)


@pytest.mark.parametrize("device", ["cpu", "cpu:0,1", "cpu:0,1,2"])
def test_a_network_that_holds_the_images_trains_to_the_same_weights(device):
    source, training = made_of({"pad_crop": 4, "flip": "random"}, batch_size=13)
    keys = {"name": "tiny", "conv_arch": [[1, 4], [1, 8]], "batch_norm": True, "dense": [], "classes": 10}
    weights = []
    for held in (False, True):
        network = Network(msgspec.convert(keys, Architecture), training, runtime.devices(device), "float32")
        network.initialize(0)
        network.start_epoch([])
        if held:
            network.hold(IMAGES, NORM)
        for step, (images, labels) in enumerate(source.plans(0) if held else source.epoch(0)):
            network.step(images, labels, 0.1, step)
        weights.append(network.state()[0])
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], value, err_msg=name)
