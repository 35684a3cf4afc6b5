"""The bundled sample: reproducible, too hard for a linear model, and never mistaken for CIFAR-10."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline import dataset
from pipeline.dataset import sample, store


@pytest.fixture(scope="module")
def drawn():
    return sample.draw()


def test_the_sample_is_the_same_on_every_machine(drawn):
    assert store.digest(drawn) == "e464fb50f8d62eda08344133edff19756e12560680b905649076d1759ae4c016"


def test_the_sample_has_5000_training_and_1000_test_pictures_balanced_over_the_classes(drawn):
    assert np.bincount(drawn.train[0].labels).tolist() == [500] * 10
    assert np.bincount(drawn.test[0].labels).tolist() == [100] * 10


def test_no_test_picture_is_also_a_training_picture(drawn):
    train = {row.tobytes() for row in drawn.train[0].images}
    assert len(train) == 5000
    assert not any(row.tobytes() in train for row in drawn.test[0].images)


def test_a_linear_model_stays_far_below_60_percent(drawn):
    """Softmax regression by mini-batch gradient descent; its best test accuracy in 10 epochs."""
    labels, test_labels = drawn.train[0].labels, drawn.test[0].labels
    train, test = ((part.images / np.float32(255) - np.float32(0.5)) for part in (drawn.train[0], drawn.test[0]))
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


def test_the_sample_takes_less_than_3_seconds_of_cpu_and_is_labelled(chain, reporter):
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
