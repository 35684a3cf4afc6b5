"""The batches: the validation split, the order of the images, and their augmentation."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline.config import Augmentation, Training
from pipeline.dataset.augmentation import Plan, augment
from pipeline.dataset.loader import TrainingLoader, batch_bounds, padded_batches, split
from pipeline.dataset.normalisation import Normalisation

IMAGES = np.random.RandomState(0).randint(1, 256, (70, 3, 32, 32)).astype(np.uint8)
LABELS = (np.arange(70) % 7).astype(np.uint8)
ALL = Augmentation(pad_crop=4, flip="random", cutout=8)


def training_batches(augmentation=ALL, seed=3, batch_size=16, indices=None):
    training = Training(epochs=5, batch_size=batch_size, seed=seed, augmentation=augmentation)
    return TrainingLoader(IMAGES, LABELS, np.arange(70) if indices is None else indices, training, Normalisation())


def joined(batches):
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("count", [0, 21, 24])
def test_validation_is_balanced_and_disjoint_from_training(count):
    training, validation = split(LABELS, count, seed=0)
    assert sorted([*training, *validation]) == list(range(70))
    of_each = np.bincount(LABELS[validation], minlength=7)
    assert of_each.sum() == count
    assert of_each.max() - of_each.min() <= (count % 7 > 0)


def test_the_split_depends_on_the_seed_alone():
    assert np.array_equal(split(LABELS, 21, 5)[1], split(LABELS, 21, 5)[1])
    assert not np.array_equal(split(LABELS, 21, 5)[1], split(LABELS, 21, 6)[1])


def test_an_epoch_yields_every_training_image_once():
    found = list(training_batches(Augmentation()).epoch(0))
    assert [len(labels) for _, labels in found] == [14] * 5
    images, labels = joined(found)
    by_bytes = {
        (image * 255).round().astype(np.uint8).tobytes(): label for image, label in zip(images, labels, strict=True)
    }
    assert by_bytes == {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (1200, 400, [400, 400, 400]),
        (1201, 400, [301, 300, 300, 300]),
        (1224, 400, [306, 306, 306, 306]),
        (1225, 400, [400, 400, 400, 25]),
        (130, 128, [65, 65]),
        (136, 128, [128, 8]),
        (9, 4, [3, 3, 3]),
        (3, 400, [3]),
        (5, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_no_batch_is_left_with_few_images(images, batch_size, sizes):
    assert np.diff(batch_bounds(images, batch_size)).tolist() == sizes


def test_only_training_images_are_yielded():
    training, _ = split(LABELS, 21, seed=0)
    batches = training_batches(Augmentation(), indices=training)
    assert sorted(batches.order(0)) == sorted(training)
    assert sum(len(labels) for _, labels in batches.epoch(0)) == 49


@pytest.mark.parametrize("augmentation", [Augmentation(), ALL, Augmentation(flip="alternating")])
def test_resuming_mid_epoch_yields_exactly_the_missed_batches(augmentation):
    whole = list(training_batches(augmentation).epoch(2))
    rest = list(training_batches(augmentation).epoch(2, first_step=3))
    assert len(rest) == 2
    for (images, labels), (same_images, same_labels) in zip(whole[3:], rest, strict=True):
        assert np.array_equal(images, same_images)
        assert np.array_equal(labels, same_labels)


def test_order_and_augmentation_depend_on_seed_and_epoch():
    ours, theirs = training_batches(seed=3), training_batches(seed=4)
    assert not np.array_equal(ours.order(0), ours.order(1))
    assert not np.array_equal(ours.order(0), theirs.order(0))
    first, order = ours.batch(0, 0, np.arange(70))[0], np.arange(70)
    assert not np.array_equal(first, ours.batch(1, 0, order)[0])
    assert not np.array_equal(first, theirs.batch(0, 0, order)[0])


def test_alternating_flips_mirror_each_image_in_every_other_epoch():
    batches = training_batches(Augmentation(flip="alternating"), batch_size=70)
    order = np.arange(70)
    first, second, third = (batches.batch(epoch, 0, order)[0] for epoch in range(3))
    assert np.array_equal(first, third)
    assert np.array_equal(first, second[..., ::-1])
    mirrored = np.isclose(first, IMAGES[..., ::-1] / np.float32(255)).all((1, 2, 3))
    assert 15 < mirrored.sum() < 55, "about half start mirrored"


def test_a_planned_flip_mirrors_left_and_right_only():
    rows = np.arange(2)
    changed = augment(IMAGES[:2], Plan(rows, flips=np.array([True, False])), Augmentation(flip="random"))
    assert np.array_equal(changed[0], IMAGES[0, :, :, ::-1])
    assert np.array_equal(changed[1], IMAGES[1])


def test_a_shift_moves_the_image_within_a_black_border():
    plan = Plan(np.arange(3), shifts=np.array([[4, 0, 8], [4, 1, 4]]))
    still, down_right, up = augment(IMAGES[:3], plan, Augmentation(pad_crop=4))
    assert np.array_equal(still, IMAGES[0])
    assert np.array_equal(down_right[:, 4:, 3:], IMAGES[1, :, :-4, :-3])
    assert not down_right[:, :4].any()
    assert not down_right[:, :, :3].any()
    assert np.array_equal(up[:, :-4], IMAGES[2, :, 4:])
    assert not up[:, -4:].any()


def test_reflect_padding_fills_the_border_with_a_reflection():
    plan = Plan(np.arange(1), shifts=np.array([[0], [4]]))
    (down_right,) = augment(IMAGES[:1], plan, Augmentation(pad_crop=2, padding="reflect"))
    assert np.array_equal(down_right[:, 2:, :-2], IMAGES[0, :, :-2, 2:])
    assert np.array_equal(down_right[:, :2, :-2], IMAGES[0, :, 2:0:-1, 2:])
    assert np.array_equal(down_right[:, 2:, -2:], IMAGES[0, :, :-2, -2:-4:-1])


def test_a_cutout_blanks_one_square_and_may_hang_over_the_edge():
    plan = Plan(np.arange(2), holes=np.array([[5, -3], [6, 28]]))
    inside, over = augment(IMAGES[:2], plan, Augmentation(cutout=8))
    assert np.argwhere(inside[0] == 0).tolist() == [[y, x] for y in range(5, 13) for x in range(6, 14)]
    assert np.argwhere(over[2] == 0).tolist() == [[y, x] for y in range(5) for x in range(28, 32)]
    assert IMAGES.min() == 1, "the originals are unchanged"


def test_random_augmentation_uses_its_whole_range():
    batches = training_batches(batch_size=70)
    plans = [batches.plan(epoch, 0, np.arange(70)) for epoch in range(30)]
    shifts = np.concatenate([plan.shifts for plan in plans], 1)
    assert {*shifts[0]} == {*shifts[1]} == {*range(9)}
    flips = np.concatenate([plan.flips for plan in plans])
    assert 0.4 < flips.mean() < 0.6


def test_mean_and_deviation_are_measured_over_all_images():
    images = np.random.default_rng(0).integers(0, 200, (1201, 3, 4, 4), np.uint8)
    images[500:, 1] += 40  # as if sorted by class
    norm = Normalisation.measure(images)
    assert norm.mean == pytest.approx(images.mean((0, 2, 3)) / 255, abs=1e-6)
    assert norm.std == pytest.approx(images.std((0, 2, 3)) / 255, abs=1e-6)
    values = norm.apply(images)
    assert values.dtype == np.float32
    assert values.mean((0, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-4)
    assert values.std((0, 2, 3)) == pytest.approx([1, 1, 1], abs=1e-4)
    assert Normalisation.from_manifest({"normalisation": {"mean": list(norm.mean), "std": list(norm.std)}}) == norm


def test_without_normalisation_pixels_are_0_to_1():
    values = Normalisation().apply(np.array([0, 255, 51], np.uint8).reshape(3, 1, 1, 1).repeat(3, 1))
    assert values[:, 0, 0, 0] == pytest.approx([0, 1, 0.2])


def test_an_image_of_any_one_colour_can_be_normalised():
    for value in range(256):  # for some, rounding makes the variance negative
        images = np.full((7, 3, 32, 32), value, np.uint8)
        assert np.isfinite(Normalisation.measure(images).apply(images)).all(), value


def test_padded_batches_have_one_shape_and_keep_the_order():
    parts = list(padded_batches(IMAGES, 32, Normalisation()))
    assert [(values.shape[0], count) for values, count in parts] == [(32, 32), (32, 32), (32, 6)]
    together = np.concatenate([values[:count] for values, count in parts])
    assert np.array_equal(together, Normalisation().apply(IMAGES))


def test_waiting_time_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = training_batches()
    assert made.waited == 0
    real = made.batch

    def slow(*arguments: int) -> object:
        time.sleep(0.1)
        return real(*arguments)

    monkeypatch.setattr(made, "batch", slow)
    steps = len(list(made.epoch(1)))
    assert made.waited > 0.05 * steps  # a batch is started a moment before it is requested
