"""The error for a source of a data set that cannot be used."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import DataError

ADVICE = (
    "get a good copy (an archive of CIFAR or its unpacked folder; your own images in a folder, not packed) and set "
    "data.source to it (for cifar10, CIFAR10_SOURCE works too, for cifar100 CIFAR100_SOURCE), or add a mirror to "
    "data.mirrors"
)

#: Callback for progress: a fraction (0..1) and a line about what is being done.
Progress = Callable[[float, str], None]


class Refused(DataError):
    """A source that cannot be used. `fits` names the `data.name` under which it might be.

    `source.fetch` adds the address.
    """

    def __init__(self, reason: str, advice: str = ADVICE, retryable: bool = False, fits: str = "") -> None:
        super().__init__(reason)
        self.advice, self.retryable, self.fits = advice, retryable, fits
