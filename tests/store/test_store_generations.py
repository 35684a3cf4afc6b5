"""Scheduled retraining with the workspace in S3: hosts take turns and share one pointer to the current model."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from luigi_runs import CHECKOUT, TIMEOUT, run, small_archive
from PIL import Image
from s3_server import Proxy
from store_hosts import Bucket, Host

from pipeline import status
from pipeline.config import load
from pipeline.retraining import deletion, registry, retention
from pipeline.storage import ObjectStorage, object_locks
from pipeline.storage.store import Store
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain


def test_hosts_retrain_roll_back_and_prune_as_one(
    host: Callable[..., Host], bucket: Bucket, proxy: Proxy, tmp_path: Path
) -> None:
    metrics, notified = tmp_path / "vgg.prom", tmp_path / "notified.jsonl"
    one, two = host("one"), host("two", metrics=metrics, notify=f"cat >> {notified}")
    hasty = host("hasty", retry_timeout=1)
    for peer in (one, two, hasty):
        peer.values["retrain"] = {"every": "day", "keep": 2, "tolerance": 0.99, "warm_start": True}
        peer.configure()

    def current() -> str:
        return json.loads(bucket.read("current/mini/tiny.json"))["generation"]

    def served() -> str:
        """Return the generation at the stable keys, after checking that each path to the model matches its manifest."""
        about = json.loads(bucket.read("current/mini/tiny/manifest.json"))
        for key in ("current/mini/tiny/model.onnx", posixpath.normpath(f"current/mini/tiny/{about['model']}")):
            assert hashlib.sha256(bucket.read(key)).hexdigest() == about["files"]["model.onnx"]["sha256"]
        assert len([key for key in bucket.objects("model.onnx") if "tiny@" in key and key.startswith("current")]) <= 2
        return about["generation"]

    assert one.good("Retrain", "--date", "2026-11-20").ran.count("promote") == 1
    assert current() == served() == "2026-11-20"
    again = two.good("Retrain", "--date", "2026-11-20")
    assert again.ran == []
    assert "up to date: " in again.log
    # The other host fetches the first one's run, compares with it and starts from its weights.
    result = two.good("Retrain", "--date", "2026-11-21")
    assert "warm start from the current model" in result.log
    assert current() == served() == "2026-11-21"
    report = json.loads(bucket.read(next(key for key in bucket.objects("report/report.json") if "11-21" in key)))
    assert report["comparison"]["previous"]["run"].endswith("@2026-11-20")
    # A rollback that cannot be published changes nothing; repeating it goes back by one.
    proxy.trouble = lambda method, path: "500" if method == "PUT" and path.endswith("/tiny.json") else None
    assert "cannot write" in hasty.luigi("Rollback").log
    proxy.quiet()
    assert current() == "2026-11-21"
    assert "now:    runs/" in hasty.good("Rollback").output
    assert current() == served() == "2026-11-20"
    status = two.good("Status", "--generation", "2026-11-21").output
    assert "the current model is runs/" in status
    assert "@2026-11-20, accuracy" in status
    # Its metrics hold the decisions of both hosts; it has sent notifications of its own only.
    place = f'workspace="{bucket.url}",dataset="mini",architecture="tiny"'
    assert f'vgg_generations_total{{{place},outcome="promoted"}} 2\n' in metrics.read_text()
    assert f'vgg_model_info{{{place},generation="2026-11-20"' in metrics.read_text()
    assert f'vgg_workspace_bytes{{workspace="{bucket.url}",kind="runs"}} ' in metrics.read_text()
    (event,) = (json.loads(line) for line in notified.read_text().splitlines())
    assert (event["event"], event["generation"], event["workspace"]) == ("promoted", "2026-11-21", bucket.url)
    pruned = two.good("Prune", "--keep", "1", "--confirm")
    assert "nothing to prune (keeping " in pruned.output  # the older generation is current
    one.good("Rollback", "--to", "2026-11-21")
    # A third host has more test images: the current model is compared on the shared ones.
    three = host("three")
    three.values |= {"retrain": one.values["retrain"]}
    three.values["data"]["source"] = str(small_archive(tmp_path / "grown.tar.gz", test=90))
    three.configure()
    assert three.good("Retrain", "--date", "2026-11-22").ran.count("promote") == 1
    report = json.loads(bucket.read(next(key for key in bucket.objects("report/report.json") if "11-22" in key)))
    compared = report["comparison"]["previous"]
    assert (compared["images_compared"], compared["all"]["images"]) == (
        "the 60 test images that are in both test sets",
        90,
    )
    pruned = two.good("Prune", "--keep", "1", "--confirm")
    assert "moving generation 2026-11-20" in pruned.output
    assert f"moved to {bucket.url}/trash/" in pruned.output

    def pruned_objects() -> list[str]:
        return [key for key in bucket.objects() if key.startswith("runs/") and "@2026-11-20" in key]

    assert not pruned_objects()
    # The other host can restore from the trash, a run as well as the pointer.
    assert "@2026-11-20 (" in two.good("Restore").output
    one.good("Restore", "--item", "2026-11-20", "--confirm")
    assert any(key.endswith("train/model.params") for key in pruned_objects())
    assert not [key for key in bucket.objects() if key.startswith("trash/")]
    one.good("Rollback", "--to", "2026-11-20")
    two.good("Retire", "--name", "mini/tiny", "--confirm")
    assert [key.split("/")[0] for key in bucket.objects("current/mini/tiny.json")] == ["trash"]
    assert not [key for key in bucket.objects() if key.startswith("current/")]
    one.good("Restore", "--item", "current/mini/tiny.json", "--confirm")
    assert current() == served() == "2026-11-20"
    # vgg-predict accepts the stable address of the current model, and quotes an unknown one as given.
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    for name, expected in (("tiny", "@2026-11-20/export"), ("tiny/model.onnx", "@2026-11-20/export"), ("x", "x: no ")):
        model = f"{bucket.url}/current/mini/{name}"
        command = [sys.executable, "-m", "pipeline.predict", "--model", model, str(tmp_path / "red.png")]
        predicted = run(command, three.cwd, three.environment())
        assert predicted.rc == (expected == "x: no "), predicted.text
        assert bucket.url in predicted.log
        assert expected in predicted.log


def test_the_trash_of_a_store_is_measured_and_emptied_by_age(shared: Workspace, bucket: Bucket) -> None:
    young, run = "trash/2999-01-01T000000Z/current/d/a.json", "runs/d/r/train/model.params"
    for key in (young, run, *(f"trash/2026-01-01T000000Z/runs/d/r/train/{name}" for name in ("manifest.json", "log"))):
        bucket.write(key, b"{}")
    sizes = status.sizes(shared)
    assert (sizes["runs"], sizes["trash"]) == ({"files": 1, "bytes": 2}, {"files": 3, "bytes": 6})
    (old,) = deletion.old_trash(shared, timedelta(days=1))
    deletion.delete(shared, [old], deletion.leftovers(shared, timedelta(days=1)))
    assert [key for key in bucket.objects() if not key.startswith("events/")] == [run, young]
    assert status.sizes(shared)["trash"] == {"files": 1, "bytes": 2}


@pytest.fixture
def shared(bucket: Bucket, in_reach: Proxy, tmp_path: Path) -> Workspace:
    """The workspace in the bucket, as this process sees it."""
    storage = ObjectStorage(Store(bucket.url), tmp_path / "cache")
    return Workspace(storage.root, storage)


def test_a_command_waits_while_the_gate_runs_on_its_own_host(
    shared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_locks, "POLL_SECONDS", 0.1)
    pointer, waits = shared.root / "current/mini/tiny.json", threading.Event()
    turns: list[str] = []

    def choose(who: str, workspace: Workspace) -> None:
        with registry.held(workspace, pointer, lambda line: waits.set()):
            turns.append(who)

    command = threading.Thread(target=choose, args=("command", shared), daemon=True)
    gate = threading.Thread(target=choose, args=("gate", Workspace(shared.root)), daemon=True)
    # As `stage_sync` does around the gate's process.
    with shared.storage.hold(registry.lock_name(pointer), "the gate", True, print):
        command.start()
        assert waits.wait(TIMEOUT)
        gate.start()
        gate.join(10)
        assert turns == ["gate"]
    command.join(TIMEOUT)
    assert turns == ["gate", "command"]


def test_a_data_set_that_another_host_has_just_begun_to_use_is_kept(shared: Workspace, bucket: Bucket) -> None:
    assert isinstance(shared.storage, ObjectStorage)
    shared.storage.listing.objects = 10**6  # in a large store, single folders are listed
    bucket.write("datasets/d-00000000/manifest.json", b"{}")
    (folder,) = retention.unneeded_datasets(shared)
    chain = Chain(shared, load(CHECKOUT / "config" / "vgg11.yaml"))
    lock = "work/locks/d-00000000.a-1.train.lock"
    bucket.write(lock, b'{"host": "far", "pid": 1}')
    moved, (left,) = retention.prune(chain, [], [folder])
    assert moved == []
    assert left.startswith("data set d-00000000 is being read by process 1 on far")
    bucket.delete(lock)
    bucket.write("runs/d-00000000/a-1/train/manifest.json", b"{}")
    assert retention.prune(chain, [], [folder]) == ([], ["data set d-00000000 is now in use"])
    assert "datasets/d-00000000/manifest.json" in bucket.objects()


def test_local_files_in_the_trash_are_deleted_by_age(shared: Workspace) -> None:
    target = shared.in_trash(shared.run("d", "r").checkpoints / "step-000000001.npz")
    target.parent.mkdir(parents=True)
    target.touch()
    os.utime(target, (time.time() - 2 * 86400,) * 2)  # written two days ago, moved to the trash now
    assert deletion.leftovers(shared, timedelta(days=1)) == []
    (moment,) = shared.trash.iterdir()
    long_ago = moment.rename(shared.trash / "2026-01-01T000000Z")
    files = deletion.leftovers(shared, timedelta(days=1))
    assert files == [long_ago / target.relative_to(moment)]
    deletion.delete(shared, deletion.old_trash(shared, timedelta(days=1)), files)
    assert list(shared.trash.iterdir()) == []
