"""Views of an image and their average, on arrays small enough to check by eye."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation import tta


@pytest.fixture
def image() -> np.ndarray:
    """(1, 1, 3, 4): rows of 1 2 3 4, 5 6 7 8, 9 10 11 12."""
    return np.arange(1, 13, dtype=np.float32).reshape(1, 1, 3, 4)


def test_one_view_is_the_image_itself(image: np.ndarray) -> None:
    (only,) = tta.views(image, 1, "zero")
    assert np.array_equal(only, image)
    outputs = [np.ones((1, 10), np.float32)]
    assert tta.average(outputs) is outputs[0]


def test_two_views_are_the_image_and_its_mirror_image(image: np.ndarray) -> None:
    first, second = tta.views(image, 2, "zero")
    assert np.array_equal(first, image)
    assert second[0, 0].tolist() == [[4, 3, 2, 1], [8, 7, 6, 5], [12, 11, 10, 9]]


def test_six_views_are_shifted_by_a_pixel_and_filled_with_black(image: np.ndarray) -> None:
    found = [view[0, 0] for view in tta.views(image, 6, "zero")]
    assert len(found) == 6
    assert found[2].tolist() == [[0, 0, 0, 0], [0, 1, 2, 3], [0, 5, 6, 7]]
    assert found[4].tolist() == [[6, 7, 8, 0], [10, 11, 12, 0], [0, 0, 0, 0]]
    for place, mirrored in ((0, 1), (2, 3), (4, 5)):
        assert np.array_equal(found[mirrored], found[place][:, ::-1])


def test_shifted_views_are_filled_with_a_reflection_if_training_did(image: np.ndarray) -> None:
    zero, reflect = (list(tta.views(image, 6, padding)) for padding in ("zero", "reflect"))
    assert np.array_equal(reflect[0], zero[0])
    down_right = reflect[2][0, 0]
    assert np.array_equal(down_right[1:, 1:], zero[2][0, 0][1:, 1:])
    assert np.array_equal(down_right[0, 1:], image[0, 0, 1, :-1])
    assert np.array_equal(down_right[1:, 0], image[0, 0, :-1, 1])


@pytest.mark.parametrize("count", [1, 2, 6])
def test_weights_sum_to_one(count: int) -> None:
    outputs = [np.full((2, 3), 7, np.float32) for _ in range(count)]
    assert np.array_equal(tta.average(outputs), outputs[0])


def test_the_views_in_place_weigh_as_much_as_the_shifted_ones() -> None:
    outputs = [np.full((1, 2), value, np.float32) for value in (8, 8, 0, 0, 0, 0)]
    assert tta.average(outputs).tolist() == [[4, 4]]
    assert tta.average(outputs).dtype == np.float32
