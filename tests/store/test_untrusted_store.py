"""Hostile content in the store: nothing is written outside the local folder, and every error is one line."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from luigi_runs import run as run_command
from s3_server import Proxy
from store_hosts import Bucket, Host

from pipeline.errors import AlreadyRunning, WorkspaceError
from pipeline.files import sha256_file
from pipeline.storage import ObjectStorage
from pipeline.storage.object_locks import ObjectLock
from pipeline.storage.store import Store
from pipeline.workspace import Workspace, manifest

RUN = "runs/mini-0123abcd/tiny-0123abcd"


@pytest.fixture
def storage(in_reach: Proxy, bucket: Bucket, tmp_path: Path) -> ObjectStorage:
    """Storage in the test's bucket, without local copies."""
    return ObjectStorage(Store(bucket.url, retry_timeout=10), tmp_path / "cache" / "mirror")


def put_stage(bucket: Bucket, tmp_path: Path, names: dict[str, str]) -> None:
    """Put a finished stage with one file into the store. Its manifest also lists that file under other names."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "metrics.json").write_text("{}")
    value = manifest.write(made, "evaluate", ["metrics.json"], {}, {})
    value["files"] |= {name: {"size": 2, "sha256": sha256_file(made / "metrics.json")} for name in names}
    for name, key in {"metrics.json": f"{RUN}/evaluate/metrics.json", **names}.items():
        assert name
        bucket.write(key, b"{}")
    bucket.write(f"{RUN}/evaluate/manifest.json", json.dumps(value).encode())


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_manifest_cannot_make_a_host_write_outside_its_folder(
    storage: ObjectStorage, bucket: Bucket, tmp_path: Path
) -> None:
    name = "../../../../../victim"
    put_stage(bucket, tmp_path, {name: "victim"})
    before = everything_in(tmp_path)
    folder = storage.root / RUN / "evaluate"
    storage.refresh([folder])
    assert manifest.problems(folder, "evaluate", {}, storage) == ["evaluate/manifest.json is damaged"]
    Workspace(storage.root, storage).fetch(folder)
    new = set(everything_in(tmp_path)) - set(before)
    assert {path for path in new if not path.startswith("cache/mirror/")} == set()
    with pytest.raises(WorkspaceError, match="leads out of"):
        storage.copies.write(f"{RUN}/evaluate/{name}", b"")


@pytest.mark.parametrize("key", ["current/../../../victim/manifest.json", "current//manifest.json", "current/./a.json"])
def test_an_object_whose_name_leads_elsewhere_is_skipped_and_reported(
    storage: ObjectStorage, bucket: Bucket, tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (key, f"{RUN}/train/a.json"):
        bucket.write(name, b"{}")
    assert key in bucket.objects()
    with caplog.at_level(logging.WARNING, "vgg"):
        Workspace(storage.root, storage).refresh()
        Workspace(storage.root, storage).refresh()
        storage.refresh_matching("current/*")
    assert list(storage.files(storage.root)) == [f"{RUN}/train/a.json"]
    assert [path for path in everything_in(tmp_path) if not path.startswith("cache/mirror/.mirror.json")] == []
    (line,) = caplog.messages
    assert f"skipped an object whose name is not a valid path: {key!r}; remove it" in line


def test_write_access_to_the_store_gives_none_to_a_hosts_files(
    host: Callable[..., Host], bucket: Bucket, tmp_path: Path
) -> None:
    one = host("one")
    one.good("TrainVGG")
    run = bucket.key("/train/manifest.json").rpartition("/train")[0]
    victim = "../" * 20 + f"{tmp_path}/victim"[1:]
    for key in (f"{run}/train/{victim}/manifest.json", f"current/mini/{victim}/x.json"):
        bucket.write(key, b"{}")
    recorded = bucket.manifest("train")
    recorded["files"][f"{victim}/.bashrc"] = {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    bucket.write(f"{run}/train/manifest.json", json.dumps(recorded).encode())
    two = host("two")
    status = two.good("Status")
    assert "skipped an object whose name is not a valid path" in status.text
    assert "train     will run  train/manifest.json is damaged" in status.output
    command = [sys.executable, "-m", "pipeline.predict", "--model", bucket.url, str(two.config)]
    predicted = run_command(command, two.cwd, two.environment())
    assert predicted.rc == 1
    assert "skipped an object whose name is not a valid path" in predicted.text
    assert "Traceback" not in predicted.text
    assert not (tmp_path / "victim").exists()


def test_folder_placeholders_are_skipped_silently(
    storage: ObjectStorage, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.write("", b"")  # as consoles and file managers create them
    bucket.write("runs/", b"")
    with caplog.at_level(logging.WARNING, "vgg"):
        assert storage.store.find() == {}
    assert caplog.messages == []


def test_a_link_among_the_copies_is_not_followed(storage: ObjectStorage, bucket: Bucket, tmp_path: Path) -> None:
    put_stage(bucket, tmp_path, {})
    outside = tmp_path / "outside"
    outside.mkdir()
    (storage.root / RUN).mkdir(parents=True)
    (storage.root / RUN / "evaluate").symlink_to(outside)
    with pytest.raises(WorkspaceError, match="leads out of"):
        storage.refresh([storage.root / RUN / "evaluate"])
    assert everything_in(outside) == []


def test_a_link_in_place_of_a_file_is_replaced_by_the_stored_file(
    storage: ObjectStorage, bucket: Bucket, tmp_path: Path
) -> None:
    put_stage(bucket, tmp_path, {})
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = storage.root / RUN / "evaluate"
    folder.mkdir(parents=True)
    (folder / "metrics.json").symlink_to(victim)
    storage.refresh([folder])
    Workspace(storage.root, storage).fetch(folder)
    assert victim.read_text() == "precious"
    assert (folder / "metrics.json").read_text() == "{}"
    assert not (folder / "metrics.json").is_symlink()


@pytest.mark.parametrize(
    "content",
    [
        {"host": "far", "pid": 1, "since": "2026-11-25", "beat": "now", "stale_after": "soon"},
        {"host": ["far"], "pid": "one"},
        {"host": "\x1b[2J", "pid": 1},
        {"host": "far", "pid": 10**400},
        [1],
        "x",
        None,
    ],
)
def test_a_malformed_lock_is_respected_until_it_is_stale(storage: ObjectStorage, bucket: Bucket, content: Any) -> None:
    def held(stale_seconds: float) -> None:
        store = Store(bucket.url, retry_timeout=10, stale_seconds=stale_seconds)
        with ObjectLock(store, "work/locks/x.lock").held("the stage", wait=False, on_wait=print):
            assert "token" in json.loads(bucket.read("work/locks/x.lock"))

    bucket.write("work/locks/x.lock", b"" if content is None else json.dumps(content).encode())
    with pytest.raises(AlreadyRunning, match="worked on by process 0 on unknown since unknown"):
        held(3600)
    held(-1)  # the store's clock has a resolution of one second
    assert "work/locks/x.lock" not in bucket.objects()


def test_a_malformed_source_record_is_replaced(host: Callable[..., Host], bucket: Bucket) -> None:
    one, two = host("one"), host("two")
    one.good("DownloadCifar")
    key = next(key for key in bucket.objects(".json") if key.startswith("datasets/sources/"))
    bucket.write(key, b'["a pointer", "without its parts"]')
    assert two.good("DownloadCifar").ran == ["dataset"]
    assert json.loads(bucket.read(key))["digest"]
    assert "dataset   done" in one.good("Status").output


def test_an_unwritable_folder_for_copies_is_reported_as_such(
    storage: ObjectStorage, bucket: Bucket, host: Callable[..., Host], tmp_path: Path
) -> None:
    bucket.write("current/mini/tiny.json", b"{}")
    with pytest.raises(WorkspaceError, match=r"/dev/full: cannot keep a local copy of .*tiny.json: the disk is full"):
        storage.store.get("current/mini/tiny.json", Path("/dev/full"))
    (tmp_path / "file").write_text("")
    result = host("one", cache=tmp_path / "file").luigi("Status")
    assert result.rc == 30
    (line,) = [line for line in result.text.splitlines() if "cannot keep a local copy" in line]
    assert str(tmp_path / "file") in line
    assert "Traceback" not in result.text
