"""Why a source of a data set cannot be used, in one line."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import DataError

ADVICE = (
    "get a good copy (an archive of CIFAR or its unpacked folder; your own images in a folder, not packed) and set "
    "data.source to it (for cifar10, CIFAR10_SOURCE works too, for cifar100 CIFAR100_SOURCE), or add a mirror to "
    "data.mirrors"
)

#: Takes a fraction (0..1) and a line about what is being done.
Tell = Callable[[float, str], None]


class Refused(DataError):
    """One source that cannot be used; `source.fetch` adds which one it is and tries the next.

    `fits` is the `data.name` with which a corrected configuration may use it.
    """

    def __init__(self, found: str, advice: str = ADVICE, retryable: bool = False, fits: str = "") -> None:
        super().__init__(found)
        self.advice, self.retryable, self.fits = advice, retryable, fits
