"""From `data.source` and its mirrors to checked images: the first source that is whole and right wins.

Reads archives and folders where they lie; leaves downloads in the workspace until the data set is made.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pipeline import address
from pipeline.config import Config
from pipeline.dataset import archive, download, folder, sample
from pipeline.dataset.layouts import Collector, Content
from pipeline.dataset.refusal import ADVICE, Refused
from pipeline.errors import DataError, SourceUnreachable
from pipeline.process.child import Reporter
from pipeline.workspace import image_folder, source_key, sources
from pipeline.workspace.freshness import Chain

#: The content of a source, and the SHA-256 of the archive that it was in (None: a folder, or the bundled sample).
Fetched = tuple[Content, str | None]


def fetch(chain: Chain, reporter: Reporter) -> Fetched:
    """Get and check the configured data set. Raises `DataError` naming every source and why it was not used."""
    data = chain.given.data
    if data.is_sample:
        reporter.progress(0.0, "drawing the bundled sample")
        return sample.drawn(), None
    failures: list[tuple[str, Refused]] = []
    for location in (data.source, *data.mirrors):
        name = address.shown(location)
        if failures:
            reporter.note(f"{failures[-1][0]}: {failures[-1][1]}; trying the next mirror")
        try:
            if "://" in location:
                return _download(chain, location, name, reporter)
            return _read(chain.given, Path(location), reporter)
        except Refused as refused:
            failures.append((name, refused))
        except MemoryError:
            failures.append((name, Refused("needs more memory than is available", "free some memory")))
    found = "; ".join(f"{name}: {refused}" for name, refused in failures)
    advice = {refused.advice for _, refused in failures}
    kind = SourceUnreachable if any(refused.retryable for _, refused in failures) else DataError
    raise kind(f"{found}; {advice.pop() if len(advice) == 1 else ADVICE}")


def downloaded(chain: Chain, name: str = "") -> Path:
    """Where a downloaded archive waits until its data set is made; `name` stands for another `data.name`."""
    data = msgspec.structs.replace(chain.given.data, name=name or chain.given.data.name)
    return chain.workspace.downloads / f"{data.name}-{source_key(data)}.archive"


def _download(chain: Chain, location: str, name: str, reporter: Reporter) -> Fetched:
    target = downloaded(chain)

    def download_it() -> bool:
        reporter.note(f"downloading {name}")
        return download.download(
            location,
            target,
            lambda fraction, message: reporter.progress(0.7 * fraction, f"{message} from {name}"),
            lambda message: reporter.note(f"{name}: {message}"),
        )

    # It is there after a run that was killed before it was unpacked, or was configured wrongly.
    was_there = target.exists()
    in_one_piece = not was_there and download_it()
    try:
        return _read_download(chain, target, reporter)
    except Refused as refused:
        if in_one_piece or (refused.fits and not was_there):
            raise
        reporter.note(f"{name}: {refused}; downloading it again")
    download_it()
    return _read_download(chain, target, reporter)


def _read_download(chain: Chain, target: Path, reporter: Reporter) -> Fetched:
    try:
        return _read(chain.given, target, reporter, start=0.7)
    except Refused as refused:
        if refused.fits:
            kept = downloaded(chain, refused.fits)
            os.replace(target, kept)
            raise Refused(f"{refused} (kept as {kept})", refused.advice, fits=refused.fits) from None
        download.remove(target)
        raise


def _read(config: Config, path: Path, reporter: Reporter, start: float = 0.0) -> Fetched:
    expected = config.data.sha256
    most = config.data.classes or config.architecture.classes or image_folder.MOST_CLASSES

    def tell(fraction: float, message: str) -> None:
        reporter.progress(start + (0.9 - start) * fraction, message)

    try:
        if expected and path.is_dir():
            raise Refused("is a folder, but data.sha256 is the checksum of an archive", "remove data.sha256")
        if sources.holds_images(config.data, path):
            return folder.read(path, config.data.test_fraction, most, tell), None
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    collector = Collector(config.data.name, most)
    found = archive.read(path, collector, tell)
    if expected and found != expected.lower():
        raise Refused(f"SHA-256 is {found}, expected {expected.lower()} (data.sha256)")
    return collector.finish(), found
