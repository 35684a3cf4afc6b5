"""The filters of `initializer: whitening`: their effect on patches, and their use in training."""

from __future__ import annotations

import numpy as np

from pipeline import runtime
from pipeline.config import Architecture, Training
from pipeline.dataset.normalisation import Normalisation
from pipeline.model import whitening
from pipeline.training.network import Network


def smooth_images(count: int = 200) -> np.ndarray:
    """Return images whose neighbouring pixels and channels correlate, as in photographs."""
    coarse = np.random.RandomState(0).randint(0, 256, (count, 1, 11, 11)).astype(np.float64)
    fine = np.kron(coarse, np.ones((1, 3, 3, 3)))[..., :32, :32]
    shifted = [np.roll(fine, shift, axis=axis) for axis in (2, 3) for shift in range(3)]
    noise = np.random.RandomState(1).normal(0, 12, fine.shape)
    return np.clip(np.mean(shifted, axis=0) + noise, 0, 255).astype(np.uint8)


def responses(filters: np.ndarray, images: np.ndarray, norm: Normalisation) -> np.ndarray:
    """Return the (patches, filters) responses of each filter to every patch of the images."""
    windows = np.lib.stride_tricks.sliding_window_view(norm.apply(images), (3, 3), axis=(2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    return patches @ filters.reshape(len(filters), 27).T


def test_filters_of_one_sign_have_uncorrelated_responses_of_similar_size() -> None:
    images = smooth_images()
    norm = Normalisation.measure(images)
    filters = whitening.filters(images, norm, (16, 3, 3, 3))
    assert filters.shape == (16, 3, 3, 3)
    assert filters.dtype == np.float32
    found = np.corrcoef(responses(filters[::2], images, norm).T)
    assert np.abs(found - np.eye(8)).max() < 0.25
    sizes = (responses(filters[::2], images, norm) ** 2).mean(0)
    assert sizes[0] > 0.9
    assert sizes.max() < 1.2
    pixels = np.corrcoef(responses(np.eye(27).reshape(27, 3, 3, 3), images, norm).T)
    assert np.abs(pixels - np.eye(27)).max() > 0.8, "pixels themselves are correlated, or the test shows nothing"


def test_each_filter_is_followed_by_its_negative_for_at_most_27_pairs() -> None:
    images = smooth_images()
    filters = whitening.filters(images, Normalisation(), (100, 3, 3, 3))
    assert filters.shape == (54, 3, 3, 3)
    assert np.array_equal(filters[::2], -filters[1::2])
    assert len(whitening.filters(images, Normalisation(), (5, 3, 3, 3))) == 4


def test_a_stem_has_12_pairs_of_side_two() -> None:
    filters = whitening.filters(smooth_images(), Normalisation(), (32, 3, 2, 2))
    assert filters.shape == (24, 3, 2, 2)
    assert np.array_equal(filters[::2], -filters[1::2])


def test_images_of_one_colour_yield_finite_filters() -> None:
    images = np.full((10, 3, 32, 32), 128, np.uint8)
    assert np.isfinite(whitening.filters(images, Normalisation.measure(images), (16, 3, 3, 3))).all()


def test_whitening_changes_only_the_first_layer_of_a_network() -> None:
    architecture = Architecture(name="tiny", conv_arch=[(1, 8), (1, 8)], batch_norm=True, dense=[], classes=10)
    states = []
    filters = whitening.filters(smooth_images(), Normalisation(), (6, 3, 3, 3))
    for first_filters in (None, filters):
        network = Network(architecture, Training(epochs=1), runtime.devices("cpu:0,1"), "float32")
        network.initialize(3)
        if first_filters is not None:
            network.replace_first_filters(first_filters)
        states.append(network.state()[0])
    without, given = states
    assert np.array_equal(given["0.0.weight"][:6], filters)
    assert np.array_equal(given["0.0.weight"][6:], without["0.0.weight"][6:])
    assert all(np.array_equal(given[name], without[name]) for name in given if name != "0.0.weight")
