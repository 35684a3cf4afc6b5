"""The bundled sample: always the same, too hard for a linear model, and never taken for CIFAR-10."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from pipeline import dataset
from pipeline.dataset import sample


@pytest.fixture(scope="module")
def members():
    return sample.members()


def split(members, *names):
    rows = np.concatenate([np.frombuffer(members[name], np.uint8).reshape(-1, 3073) for name in names])
    return rows[:, 1:], rows[:, 0]


TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]


def test_it_is_the_same_on_every_machine(members):
    digest = hashlib.sha256(b"".join(members[name] for name in sorted(members))).hexdigest()
    assert digest == "3296cc8fbe656d263aa3b9c59701a0c1a370aef87b4d28fac876c1c7a2f08799"


def test_it_has_5000_training_and_1000_test_pictures_every_class_equally_often(members):
    assert np.bincount(split(members, *TRAIN)[1]).tolist() == [500] * 10
    assert np.bincount(split(members, "test_batch.bin")[1]).tolist() == [100] * 10


def test_no_test_picture_is_a_training_picture(members):
    train = {row.tobytes() for row in split(members, *TRAIN)[0]}
    assert len(train) == 5000
    assert not any(row.tobytes() in train for row in split(members, "test_batch.bin")[0])


def test_colour_alone_tells_nothing(members):
    """The mean colours of the classes lie closer together than a tenth of the pictures' own spread."""
    pictures, labels = split(members, *TRAIN)
    colours = pictures.reshape(-1, 3, 1024).mean(axis=2)
    means = np.stack([colours[labels == label].mean(axis=0) for label in range(10)])
    assert means.std(axis=0).max() < 0.1 * colours.std(axis=0).min()


def test_a_linear_model_stays_far_below_60_percent(members):
    """Softmax regression by mini-batch gradient descent; its best test accuracy in 10 epochs."""
    pictures, labels = split(members, *TRAIN)
    test_pictures, test_labels = split(members, "test_batch.bin")
    train, test = ((part / np.float32(255) - np.float32(0.5)) for part in (pictures, test_pictures))
    weight, bias, best = np.zeros((3072, 10), np.float32), np.zeros(10, np.float32), 0.0
    for epoch in range(10):
        order = np.random.RandomState(epoch).permutation(len(train))
        for chosen in np.split(order, len(train) // 100):
            logits = train[chosen] @ weight + bias
            gradient = np.exp(logits - logits.max(axis=1, keepdims=True))
            gradient /= gradient.sum(axis=1, keepdims=True)
            gradient[np.arange(100), labels[chosen]] -= 1
            weight -= 0.01 * train[chosen].T @ gradient / 100
            bias -= 0.01 * gradient.mean(axis=0)
        best = max(best, float(((test @ weight + bias).argmax(axis=1) == test_labels).mean()))
    assert best < 0.6


def test_it_takes_less_than_3_seconds_of_cpu_and_says_what_it_is(chain, reporter):
    made = chain("bundled", name="sample", classes=10)
    start = time.process_time()
    details = dataset.prepare(made, reporter)["details"]
    assert time.process_time() - start < 3
    assert details["sample"] is True
    assert details["official"] is False
    assert details["layout"] == "drawn"
    assert details["label"] == "bundled sample, not CIFAR-10"
    assert details["classes"] == list(sample.CLASSES)
    assert made.source_record()["sample"] is True
    assert made.why("dataset") == []
    assert any("not CIFAR-10" in note for note in reporter.notes)
