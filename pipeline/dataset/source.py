"""From `data.source` and its mirrors to checked images: the first source that is whole and right wins.

Reads archives and folders where they lie; leaves downloads in the workspace until the data set is made.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from pipeline import address
from pipeline.config import OFFICIAL_SHA256, SAMPLE_LABEL, Config
from pipeline.dataset import archive, download, sample
from pipeline.dataset.layouts import CIFAR10_CLASSES, Collector, Content
from pipeline.dataset.messages import ADVICE, Progress, Refused, Reporter
from pipeline.errors import DataError, SourceUnreachable
from pipeline.workspace import source_key
from pipeline.workspace.freshness import Chain


@dataclass(frozen=True)
class Fetched:
    """What came out of a source: the content, and the SHA-256 of the archive that it was in (None: no archive)."""

    content: Content
    archive_sha256: str | None
    sample: bool = False

    @property
    def official(self) -> bool:
        """True for CIFAR-10's own binary archive, byte by byte."""
        return self.archive_sha256 == OFFICIAL_SHA256

    @property
    def layout(self) -> str:
        return "drawn" if self.sample else self.content.layout

    def label(self, name: str) -> str:
        """What people are told that this is."""
        if self.sample:
            return SAMPLE_LABEL
        return "CIFAR-10, the official archive" if self.official else f"{name}, not the official archive"


def fetch(chain: Chain, reporter: Reporter, progress: Progress) -> Fetched:
    """Get and check the configured data set. Raises `DataError` naming every source and why it was not used."""
    config = chain.config
    _check_classes(config)
    if config.data.is_sample:
        with _collector(config, "the bundled sample") as collector:
            progress.part(0.0, 0.9)(0.0, "drawing the bundled sample")
            return Fetched(_drawn(collector), None, sample=True)
    failures: list[Refused] = []
    locations = (config.data.source, *config.data.mirrors)
    for number, location in enumerate(locations, start=1):
        try:
            return _fetch_one(chain, location, reporter, progress)
        except Refused as refused:
            failures.append(refused)
        except MemoryError:
            failures.append(Refused(address.shown(location), "takes more memory than there is", "free some memory"))
        if number < len(locations):
            reporter.note(f"{failures[-1].found}; trying the next address")
    raise _nothing_left(failures)


def downloaded(chain: Chain) -> Path:
    """Where a downloaded archive waits until its data set is made."""
    data = chain.config.data
    return chain.workspace.downloads / f"{data.name}-{source_key(data)}.archive"


def _fetch_one(chain: Chain, location: str, reporter: Reporter, progress: Progress) -> Fetched:
    data = chain.config.data
    name = address.shown(location)
    local = _local_path(location)
    if local is not None:
        return _read(chain.config, local, str(local), progress, 0.0)
    target = downloaded(chain)
    if target.exists():  # a killed run downloaded it, but did not get to unpack it
        try:
            return _read_download(chain.config, target, name, progress)
        except Refused as refused:
            reporter.note(f"{refused.found}; downloading it again")
    reporter.note(f"downloading {name}")
    download.download(location, name, target, data.sha256, progress.part(0.0, 0.7), reporter.note)
    return _read_download(chain.config, target, name, progress)


def _read_download(config: Config, target: Path, name: str, progress: Progress) -> Fetched:
    try:
        return _read(config, target, name, progress, 0.7)
    except (Refused, MemoryError):
        download.set_aside(target, target)
        raise


def _read(config: Config, path: Path, name: str, progress: Progress, start: float) -> Fetched:
    expected = config.data.sha256
    with _collector(config, name) as collector:
        found = archive.read(path, name, collector, progress.part(start, 0.9))
        if expected and found is None:
            raise Refused(name, "is a folder, but data.sha256 is the checksum of an archive", "remove data.sha256")
        if expected and found != expected.lower():
            raise Refused(name, f"SHA-256 is {found}, expected {expected.lower()} (data.sha256)")
        return Fetched(collector.finish(), found)


def _drawn(collector: Collector) -> Content:
    for name, content in sample.members().items():
        if collector.wants(name, len(content)):
            collector.add(name, content)
    return collector.finish()


def _collector(config: Config, name: str) -> Collector:
    strict = config.data.name == "cifar10"
    return Collector(name, strict, _own_classes(config) or config.architecture.classes)


def _own_classes(config: Config) -> int:
    """How many classes the data set has by its name; 0 when only its files can tell."""
    return len(CIFAR10_CLASSES) if config.data.name == "cifar10" or config.data.is_sample else 0


def _check_classes(config: Config) -> None:
    """A network with too few outputs for the data set cannot be trained on it."""
    needed, classes = _own_classes(config), config.architecture.classes
    if classes < needed:
        found = f"found {classes}, but {config.data.name} has {needed} classes"
        raise DataError(f"architecture.classes: {found}; set it to {needed}")


def _local_path(location: str) -> Path | None:
    """The path that `location` means, or None for an address to download from."""
    if "://" not in location:
        return Path(location)
    scheme, _, rest = location.partition("://")
    if scheme.lower() != "file":
        return None
    return Path(urllib.parse.unquote("/" + re.split(r"[?#]", rest)[0].partition("/")[2]))


def _nothing_left(failures: list[Refused]) -> DataError:
    found = "; ".join(failure.found for failure in failures)
    advice = failures[0].advice if len({failure.advice for failure in failures}) == 1 else ADVICE
    kind = SourceUnreachable if any(failure.may_pass for failure in failures) else DataError
    return kind(f"{found}; {advice}")
