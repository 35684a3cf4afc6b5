"""From `data.source` and its mirrors to checked images: the first usable source wins. Reads local sources in place."""

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
from pipeline.process.reporter import Reporter
from pipeline.workspace import image_folder, source_key, sources
from pipeline.workspace.freshness import Chain

#: The content of a source, and the SHA-256 of its archive (None for a folder or the bundled sample).
Fetched = tuple[Content, str | None]


def fetch(chain: Chain, reporter: Reporter) -> Fetched:
    """Fetch and check the configured data set. Raises `DataError` naming every source and why it was not used."""
    data = chain.given.data
    if data.is_sample:
        reporter.progress(0.0, "drawing the bundled sample")
        return sample.draw(), None
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
    reasons = "; ".join(f"{name}: {refused}" for name, refused in failures)
    advice = {refused.advice for _, refused in failures}
    kind = SourceUnreachable if any(refused.retryable for _, refused in failures) else DataError
    raise kind(f"{reasons}; {advice.pop() if len(advice) == 1 else ADVICE}")


def download_path(chain: Chain, name: str = "") -> Path:
    """Return where a download is kept until its data set is made, for `data.name` or another `name`."""
    data = msgspec.structs.replace(chain.given.data, name=name or chain.given.data.name)
    return chain.workspace.downloads / f"{data.name}-{source_key(data)}.archive"


def _download(chain: Chain, location: str, name: str, reporter: Reporter) -> Fetched:
    target = download_path(chain)

    def download_target() -> bool:
        reporter.note(f"downloading {name}")
        return download.download(
            location,
            target,
            lambda fraction, message: reporter.progress(0.7 * fraction, f"{message} from {name}"),
            lambda message: reporter.note(f"{name}: {message}"),
        )

    # A run that was killed, or had a wrong configuration, leaves its download behind.
    was_there = target.exists()
    in_one_piece = not was_there and download_target()
    try:
        return _read_download(chain, target, reporter)
    except Refused as refused:
        if in_one_piece or (refused.fits and not was_there):
            raise
        reporter.note(f"{name}: {refused}; downloading it again")
    download_target()
    return _read_download(chain, target, reporter)


def _read_download(chain: Chain, target: Path, reporter: Reporter) -> Fetched:
    try:
        return _read(chain.given, target, reporter, start=0.7)
    except Refused as refused:
        if refused.fits:
            kept = download_path(chain, refused.fits)
            os.replace(target, kept)
            raise Refused(f"{refused} (kept as {kept})", refused.advice, fits=refused.fits) from None
        download.remove(target)
        raise


def _read(config: Config, path: Path, reporter: Reporter, start: float = 0.0) -> Fetched:
    expected = config.data.sha256
    max_classes = config.data.classes or config.architecture.classes or image_folder.MAX_CLASSES

    def progress(fraction: float, message: str) -> None:
        reporter.progress(start + (0.9 - start) * fraction, message)

    try:
        if expected and path.is_dir():
            raise Refused("is a folder, but data.sha256 is the checksum of an archive", "remove data.sha256")
        if sources.holds_images(config.data, path):
            return folder.read(path, config.data.test_fraction, max_classes, progress), None
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    collector = Collector(config.data.name, max_classes)
    sha256 = archive.read(path, collector, progress)
    if expected and sha256 != expected.lower():
        raise Refused(f"SHA-256 is {sha256}, expected {expected.lower()} (data.sha256)")
    return collector.finish(), sha256
