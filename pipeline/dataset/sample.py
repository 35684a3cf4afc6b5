"""The bundled sample: ten kinds of small colour pictures drawn by code.

It shows that a chain works before CIFAR-10 is downloaded; everything made from it is labelled as such. Colours, place,
size, tilt and noise vary from picture to picture, so that no single pixel or colour gives the class away.

The pictures are identical on every machine and with every numpy: they use only integers, the exactly rounded float32
operations + - * / and sqrt, and random numbers of `RandomState`, whose streams are frozen (NEP 19).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.layouts import Batch, Content

_SIDE = 32
_TRAIN_SEED, _TEST_SEED = 1010, 2020

_Array = NDArray[np.float32]


def draw() -> Content:
    """Draw the sample: 5,000 training and 1,000 test pictures, balanced over the classes."""
    return Content([_batch(5000, _TRAIN_SEED)], [_batch(1000, _TEST_SEED)], list(CLASSES), "drawn")


def _batch(count: int, seed: int) -> Batch:
    """Draw `count` shuffled pictures, `count / 10` of each class."""
    random = np.random.RandomState(seed)
    per_class = count // len(CLASSES)
    pictures = np.concatenate([_pictures(shape, per_class, random) for shape in _SHAPES.values()])
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.uint8), per_class)
    order = random.permutation(count)
    return Batch(pictures.reshape(count, -1)[order], labels[order])


def _pictures(
    shape: Callable[[_Array, _Array], _Array], count: int, random: np.random.RandomState
) -> NDArray[np.uint8]:
    """Draw (count, 3, 32, 32) uint8 pictures of one shape."""
    radius = _uniform(random, (count, 1, 1), 6.0, 11.0)
    u, v = _tilted_coordinates(count, radius, random)
    # How much of each pixel the shape covers, 0..1, with half a pixel of soft edge.
    cover = np.minimum(np.maximum(0.5 - shape(u, v) * radius, 0), 1)[:, None]
    ground, figure = _colours(count, random)
    picture = ground + (figure - ground) * cover
    picture += _shading(count, random)
    noise = np.frombuffer(random.bytes(picture.size), np.uint8).reshape(picture.shape)
    picture += (noise.astype(np.float32) - 127.5) * _uniform(random, (count, 1, 1, 1), 0.1, 0.6)
    return np.minimum(np.maximum(picture + 0.5, 0), 255).astype(np.uint8)


def _tilted_coordinates(count: int, radius: _Array, random: np.random.RandomState) -> tuple[_Array, _Array]:
    """Return each pixel's coordinates (count, 32, 32) in the shape's frame: centre 0, half width 1, tilt up to 14°."""
    margin = _SIDE / 2 - radius
    middle = (_SIDE - 1) / 2
    centre_x = middle + margin * _uniform(random, (count, 1, 1), -1.0, 1.0)
    centre_y = middle + margin * _uniform(random, (count, 1, 1), -1.0, 1.0)
    # A rotation without sin and cos, whose rounding differs between machines: t is the tangent of half the angle.
    t = _uniform(random, (count, 1, 1), -0.123, 0.123)
    cosine = (1 - t * t) / (1 + t * t)
    sine = (t + t) / (1 + t * t)
    y, x = np.meshgrid(np.arange(_SIDE, dtype=np.float32), np.arange(_SIDE, dtype=np.float32), indexing="ij")
    x, y = (x - centre_x) / radius, (y - centre_y) / radius
    return x * cosine + y * sine, y * cosine - x * sine


def _colours(count: int, random: np.random.RandomState) -> tuple[_Array, _Array]:
    """Pick colours (count, 3, 1, 1) of ground and figure, at least 48 of 256 levels apart in every channel."""
    ground = random.randint(0, 256, (count, 3, 1, 1))
    figure = (ground + random.randint(48, 256 - 48 + 1, (count, 3, 1, 1))) % 256
    return ground.astype(np.float32), figure.astype(np.float32)


def _shading(count: int, random: np.random.RandomState) -> _Array:
    """Return a brightness gradient for each picture, (count, 3, 32, 32), up to 40 levels either way."""
    across = np.arange(1 - _SIDE, _SIDE, 2).astype(np.float32) / (_SIDE - 1)  # -1..1
    along_x = _uniform(random, (count, 3, 1, 1), -20.0, 20.0) * across.reshape(1, 1, 1, _SIDE)
    along_y = _uniform(random, (count, 3, 1, 1), -20.0, 20.0) * across.reshape(1, 1, _SIDE, 1)
    return np.add(along_x, along_y)


def _uniform(random: np.random.RandomState, shape: tuple[int, ...], low: float, high: float) -> _Array:
    return (low + (high - low) * random.random_sample(shape)).astype(np.float32)


# --- shapes: signed distance to the edge, negative inside; one unit is the shape's half width -----------------------


def _disc(u: _Array, v: _Array) -> _Array:
    return np.sqrt(u * u + v * v) - 1.0


def _box(u: _Array, v: _Array) -> _Array:
    return np.maximum(np.abs(u), np.abs(v))


def _triangle(u: _Array, v: _Array) -> _Array:
    return np.maximum((2 * np.abs(u) - v - 1) / 2.236068, v - 0.9)


def _cross(u: _Array, v: _Array) -> _Array:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u, v - 0.7), np.maximum(v, u - 0.7)) - 0.3


def _bands(along: _Array) -> _Array:
    """Bands of equal width across a coordinate, one band and one gap in each 0.7 units."""
    phase = along / 0.7
    return (np.abs(phase - np.floor(phase) - 0.5) - 0.25) * 0.7


def _squares(u: _Array, v: _Array) -> _Array:
    """The exclusive or of bands along both axes."""
    a, b = _bands(u), _bands(v)
    return np.maximum(np.minimum(a, b), -np.maximum(a, b))


_SHAPES: dict[str, Callable[[_Array, _Array], _Array]] = {
    "disc": _disc,
    "ring": lambda u, v: np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.25,
    "square": lambda u, v: _box(u, v) - 0.9,
    "frame": lambda u, v: np.abs(_box(u, v) - 0.67) - 0.23,
    "triangle": _triangle,
    "cross": _cross,
    "horizontal stripes": lambda u, v: np.maximum(_bands(v), _disc(u, v)),
    "vertical stripes": lambda u, v: np.maximum(_bands(u), _disc(u, v)),
    "diagonal stripes": lambda u, v: np.maximum(_bands((u + v) / 1.4142135), _disc(u, v)),
    "checkerboard": lambda u, v: np.maximum(_squares(u, v), _disc(u, v)),
}

CLASSES = tuple(_SHAPES)
