"""Listings of a store: only the wanted runs are listed, and deleted objects are noticed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from s3_server import Proxy
from store_hosts import Bucket

from pipeline.errors import WorkspaceError
from pipeline.storage import ObjectStorage
from pipeline.storage.copies import INDEX
from pipeline.storage.listing import PAGE
from pipeline.storage.store import Store, Stored
from pipeline.workspace import RUN_FOLDERS


def test_only_wanted_runs_are_listed_and_deleted_files_vanish_with_the_next_listing(
    in_reach: Proxy, bucket: Bucket, tmp_path: Path
) -> None:
    runs = [f"runs/d/{name}{number}" for name in ("a", "b") for number in range(10)]
    for run in [*runs, "runs/d/a33", "runs/d/c"]:
        bucket.write(f"{run}/train/model.params", b"weights of " + run.encode())
    place = ObjectStorage(Store(bucket.url), tmp_path / "mirror")
    place.listing.objects = len(runs) * PAGE + 1
    in_reach.quiet()
    place.refresh([place.root / run for run in runs])
    assert len(in_reach.seen) == len(runs)
    assert {run for run in [*runs, "runs/d/a33", "runs/d/c"] if place.names(place.root / run / "train")} == set(runs)
    assert place.size(place.root / "runs/d/b7/train/model.params") == len("weights of runs/d/b7")
    bucket.delete("runs/d/b7/train/model.params")
    bucket.write("runs/d/b8/train/manifest.json", b"{}")
    place.refresh([place.root / run for run in runs], since=time.monotonic())
    assert place.names(place.root / "runs/d/b7/train") == []
    assert place.names(place.root / "runs/d/b8/train") == ["manifest.json", "model.params"]
    place.listing.objects = len(runs) * PAGE  # the whole store takes as many requests
    in_reach.quiet()
    place.refresh([place.root / run for run in runs], since=time.monotonic())
    assert len(in_reach.seen) == 1
    assert place.exists(place.root / "runs/d/c")


@pytest.mark.parametrize("prefix", ["exp[lr=0.1]", "x::y", "what?*{a,b}", "exp#1 %20"])
def test_a_prefix_is_taken_literally(in_reach: Proxy, bucket: Bucket, tmp_path: Path, prefix: str) -> None:
    place = ObjectStorage(Store(f"{bucket.url}/{prefix}"), tmp_path / "mirror")
    for run in ("a", "b"):
        place.store.write(f"runs/d/{run}/train/manifest.json", run.encode())
    (tmp_path / "upload").write_text("c")
    place.store.put(tmp_path / "upload", "runs/d/c/train/manifest.json")
    place.store.copy("runs/d/c/train/manifest.json", "trash/c.json")
    assert {key.partition("/")[0] for key in bucket.objects()} == {prefix}
    place.refresh_matching("runs/d/?", RUN_FOLDERS)
    roots = [place.root / "runs/d" / run for run in "abc"]
    assert [(root / "train" / "manifest.json").read_text() for root in roots] == ["a", "b", "c"]
    place.move(roots[0], place.root / "trash" / "a")
    place.refresh_matching("runs/*/*", RUN_FOLDERS)
    assert [place.exists(root) for root in roots] == [False, True, True]
    assert not roots[0].exists()


def test_a_failed_read_is_retried_by_the_next_refresh(in_reach: Proxy, bucket: Bucket, tmp_path: Path) -> None:
    bucket.write("runs/d/r/train/manifest.json", b"{}")
    place = ObjectStorage(Store(bucket.url, retry_timeout=0), tmp_path / "mirror")
    folder = place.root / "runs/d/r/train"
    in_reach.trouble = lambda method, path: "500" if path.endswith("manifest.json") else None
    with pytest.raises(WorkspaceError, match="cannot read"):
        place.refresh([folder])
    in_reach.quiet()
    place.refresh([folder])
    assert (folder / "manifest.json").read_bytes() == b"{}"


@pytest.mark.parametrize("content", ["{", "[]", '{"url": "URL", "objects": "x"}', '{"url": "URL", "files": {"a": []}}'])
def test_a_damaged_index_is_discarded(bucket: Bucket, tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content.replace("URL", bucket.url))
    assert ObjectStorage(Store(bucket.url), tmp_path).copies._index == {}


def test_a_huge_object_is_skipped_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    store, found = Store("memory://b"), {"a/manifest.json": Stored(1 << 40, "1"), "b/manifest.json": Stored(2, "1")}
    with caplog.at_level("WARNING", "vgg"):
        assert [list(store.only_small(found)) for _ in range(2)] == [["b/manifest.json"]] * 2
    assert caplog.messages == ["memory://b/a/manifest.json: skipped, 1100 GB is far too large; remove it"]
