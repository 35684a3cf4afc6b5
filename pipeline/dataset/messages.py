"""What the data set stage says: refusals in one line, and how far it is, a few times a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from pipeline.errors import DataError

ADVICE = (
    "get a good copy (an archive or an unpacked folder) and name it in data.source or, for cifar10, in CIFAR10_SOURCE, "
    "or add an address to data.mirrors"
)

#: Takes a fraction (0..1) and a line about what is being done.
Tell = Callable[[float, str], None]


class Reporter(Protocol):
    """Where the stage tells what it does; `pipeline.process.child.Reporter` is the real one."""

    def progress(self, fraction: float, message: str) -> None: ...

    def note(self, message: str) -> None: ...


class Refused(DataError):
    """One source that cannot be used: `found` says what and why, `advice` what to do.

    Stays inside this package: `source.fetch` turns it into a plain `DataError` once no other source is left.
    """

    def __init__(self, where: str, found: str, advice: str = ADVICE, may_pass: bool = False) -> None:
        super().__init__(f"{where}: {found}; {advice}")
        self.may_pass = may_pass
        self.found, self.advice = f"{where}: {found}", advice


def shown(name: str) -> str:
    """A name out of an archive as it may be printed: ASCII, in one line, at most 80 characters."""
    text = ascii(name)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."


class Progress:
    """Passes on at most four reports a second, scaled into the part `start`..`end` of the whole stage."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._last = float("-inf")

    def part(self, start: float, end: float) -> Tell:
        """A `Tell` whose 0..1 becomes `start`..`end`."""

        def tell(fraction: float, message: str) -> None:
            moment = time.monotonic()
            if moment - self._last >= 0.25:
                self._last = moment
                self._reporter.progress(start + (end - start) * min(max(fraction, 0.0), 1.0), message)

        return tell
