"""The data set stage: from an address, an archive, a folder or the bundled sample to arrays ready to memory-map.

Reads `data` of the configuration. Writes `datasets/<name>-<digest8>/` and, last of all, the pointer from the source to
that data set.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import OFFICIAL, SAMPLE_LABEL, Data
from pipeline.dataset import download, source, store
from pipeline.dataset.layouts import Content
from pipeline.dataset.store import TEST_FILES, Dataset, load, load_test, verify
from pipeline.errors import from_os_error
from pipeline.files import remove_debris, write_json
from pipeline.process.reporter import Reporter
from pipeline.workspace import dataset_id, image_folder, sources
from pipeline.workspace.freshness import Chain, shown_source

__all__ = ["TEST_FILES", "Dataset", "load", "load_test", "prepare", "verify"]

#: How many copies of a source, such as each host's own, a pointer remembers as the same data set.
_COPIES = 100


def prepare(chain: Chain, reporter: Reporter) -> dict[str, Any]:
    """Make the configured data set, or reuse the existing one; returns its manifest.

    Raises `DataError` when no source yields the data set, `WorkspaceError` when it cannot be stored.
    """
    data = chain.given.data
    pointer = chain.workspace.source_pointer(data)
    try:
        remove_debris(pointer.parent, pointer.name)
        # Before reading, so that a change during the reading is noticed by the next command.
        stat = sources.state(data)
        content, archive_sha256 = source.fetch(chain, reporter)
        reporter.progress(0.9, "writing the arrays")
        details = _details(data, content, archive_sha256)
        folder = chain.workspace.dataset(dataset_id(data.name, details["digest"]))
        # Another process may be writing the same data set from another source.
        with chain.workspace.hold(chain.workspace.lock(folder.name), f"data set {folder.name}", True, reporter.note):
            manifest = _reuse(folder, details) or store.write(folder, content, details)
            record = _pointer(chain, folder.name, stat, content, details)
            if content.images is not None:
                image_folder.write(chain.workspace.source_listing(data), content.images)
            write_json(pointer, record)
        download.remove(source.download_path(chain))
    except OSError as error:
        raise from_os_error(error, "store the data set") from error
    reporter.progress(1.0, details["label"])
    for remark in content.remarks:
        reporter.note(remark)
    if change := record["change"]:
        reporter.note(f"changed since {change['since']}" + (f": {change['what']}" if change["what"] else ""))
    counts = f"{details['train_images']:,} training and {details['test_images']:,} test images"
    classes = f"{len(details['classes'])} classes, digest {details['digest'][:8]}"
    reporter.note(f"data set ready: {details['label']}; {counts} in {classes}")
    return manifest


def _reuse(folder: Path, details: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of the same data set if it was made before and is intact; None otherwise."""
    existing = store.intact(folder, details["digest"])
    if existing is not None and details["official"] and not existing["details"].get("official"):
        return store.finish(folder, details)  # the images turned out to be the official ones
    return existing


def _details(data: Data, content: Content, archive_sha256: str | None) -> dict[str, Any]:
    train, test = (
        np.bincount(np.concatenate([batch.labels for batch in split]), minlength=len(content.classes)).tolist()
        for split in (content.train, content.test)
    )
    official = next((known for known in OFFICIAL.values() if known.sha256 == archive_sha256), None)
    unofficial = data.name if content.layout == "images" else f"{data.name}, not the official archive"
    label = f"{official.title}, the official archive" if official else unofficial
    return {
        "name": data.name,
        "digest": store.digest(content),
        "classes": content.classes,
        "train_images": sum(train),
        "test_images": sum(test),
        "train_per_class": train,
        "test_per_class": test,
        "sample": data.is_sample,
        "official": official is not None,
        "archive_sha256": archive_sha256,
        "layout": content.layout,
        "label": SAMPLE_LABEL if data.is_sample else label,
        **({"remarks": content.remarks} if content.remarks else {}),
    }


def _pointer(
    chain: Chain, dataset: str, stat: sources.State | None, content: Content, details: dict[str, Any]
) -> dict[str, Any]:
    data, before = chain.given.data, chain.source_record()
    same = before if before and before["digest"] == details["digest"] else None
    known = sources.recorded(same) if same else []
    return {
        "schema": 1,
        "dataset": dataset,
        "source": shown_source(data),
        "stat": stat,
        "read": time.time(),
        "copies": [state for state in known if state not in (None, stat)][:_COPIES],
        "change": same.get("change") if same else _change(chain, before, content),
        # Unchanged for the same images, so that the configuration still matches its finished runs.
        "classes": same["classes"] if same else max(2, len(details["classes"])),
        **{key: details[key] for key in ("digest", "official", "sample", "label")},
    }


def _change(chain: Chain, before: dict[str, Any] | None, content: Content) -> dict[str, str] | None:
    """Return which data set the source held before, and what changed since, as far as that is known."""
    if before is None:
        return None
    listed = image_folder.read(chain.workspace.source_listing(chain.given.data))
    what = image_folder.difference(listed, content.images) if listed and content.images else ""
    return {"since": before["dataset"], "what": what}
