"""Faults between hosts and their store: nothing is lost, and no part is mistaken for the whole."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from luigi_runs import Running
from s3_server import Proxy
from store_hosts import Bucket, Host, local_weights

from pipeline.config import load
from pipeline.errors import AlreadyRunning
from pipeline.storage import ObjectStorage
from pipeline.storage.object_locks import ObjectLock
from pipeline.storage.store import Store
from pipeline.workspace import Workspace, events, manifest
from pipeline.workspace.freshness import Chain

Hosts = Callable[..., Host]

#: Long enough to interrupt, with a checkpoint every few steps.
LONG: dict[str, Any] = {"epochs": 40, "checkpoint_seconds": 0.05}


def is_upload(method: str, path: str, ending: str = "") -> bool:
    return method == "PUT" and path.partition("?")[0].endswith(ending)


def checkpoint(bucket: Bucket) -> str:
    """Return the newest published checkpoint, "" if there is none."""
    return max((key for key in bucket.objects(".npz") if "/checkpoints/" in key), default="")


def training(host: Host, bucket: Bucket) -> Running:
    """Start a training and wait until it has published a checkpoint."""
    running = host.start("TrainVGG")
    running.wait_for(lambda: checkpoint(bucket), "a checkpoint was published")
    return running


def test_server_errors_cut_uploads_and_slow_responses_are_retried(host: Hosts, bucket: Bucket, proxy: Proxy) -> None:
    one = host("one")
    kinds, turns = itertools.cycle(["500", "cut", "slow", "500", "cut"]), itertools.count()
    slow = itertools.count()

    def trouble(method: str, path: str) -> str | None:
        if next(turns) % 4:
            return None
        kind = next(kinds)
        return "500" if kind == "slow" and next(slow) >= 2 else kind  # two are enough: each takes seconds

    proxy.trouble = trouble
    result = one.good("TrainVGG")
    assert result.ran == ["dataset", "train"]
    assert {entry.split()[0] for entry in proxy.troubled} == {"500", "cut", "slow"}
    assert {"cut PUT", "500 GET"} <= set(proxy.troubled)
    proxy.quiet()
    assert "no damage" in host("two").good("Verify").output


def test_a_result_that_cannot_be_uploaded_is_kept_and_published_by_the_next_command(
    host: Hosts, bucket: Bucket, proxy: Proxy
) -> None:
    one = host("one", retry_timeout=2)
    proxy.trouble = lambda method, path: "500" if is_upload(method, path, "model.params") else None
    result = one.luigi("TrainVGG")
    assert result.rc == 30
    (line,) = [line for line in result.log.splitlines() if "cannot upload" in line]
    assert "train/model.params: cannot upload" in line
    assert "run the same command again to publish it (nothing is recomputed)" in line
    assert "Traceback" not in result.text
    assert not [key for key in bucket.objects("manifest.json") if "/train/" in key]
    assert "train     will run  made here, but not in the store yet" in one.good("Status").output
    proxy.quiet()
    refused = one.luigi("SetAside", "--stage", "train", "--confirm")  # moved in the store, it would be lost
    assert refused.rc != 0
    assert "made here, but not in the store yet" in refused.log
    again = one.good("TrainVGG")
    assert again.ran == []
    assert "publishing the result of an earlier run on this host" in again.log
    assert "train     done" in host("two").good("Status").output


def test_training_continues_during_an_outage(host: Hosts, bucket: Bucket, proxy: Proxy) -> None:
    one = host("one", retry_timeout=1)
    one.configure(**{**LONG, "epochs": 15})
    proxy.trouble = lambda method, path: "500" if "checkpoints" in path and method in ("PUT", "POST") else None
    result = one.good("TrainVGG")
    assert "a checkpoint could not be published, training continues" in result.log
    assert bucket.manifest("train")["details"]["epochs"] == 15
    assert bucket.manifest("train")["details"]["resumed"] == 0


def test_another_host_resumes_exactly_from_the_published_checkpoint_of_a_killed_one(
    host: Hosts, bucket: Bucket, tmp_path: Path
) -> None:
    one, two = host("one"), host("two")
    one.configure(**LONG)
    two.configure(**LONG)
    with training(one, bucket) as running:
        running.kill()
    bucket.write(f"{checkpoint(bucket).partition('checkpoints/')[0]}left.json", b"{}")
    result = two.good("TrainVGG")
    assert result.ran == ["train"]
    assert "published by another host" in result.log
    details = bucket.manifest("train")["details"]
    assert (details["resumed"], details["exact"]) == (1, True)
    assert bucket.weights() == local_weights(tmp_path / "undisturbed", two)
    assert not [key for key in bucket.objects() if key.startswith("work/") and not key.endswith(".lock")]
    # The first host's own, older checkpoints are obsolete.
    assert one.good("TrainVGG").ran == []


def test_a_host_killed_during_an_upload_leaves_no_finished_stage(host: Hosts, bucket: Bucket, proxy: Proxy) -> None:
    one, two = host("one"), host("two")
    proxy.held.clear()
    proxy.release.clear()
    proxy.trouble = lambda method, path: "hold" if is_upload(method, path, "train/model.params") else None
    with one.start("TrainVGG") as running:
        running.wait_for(proxy.held.is_set, "it uploads the weights")
        running.kill()
    proxy.release.set()
    proxy.quiet()
    assert not bucket.objects("/train/manifest.json")
    assert "train     will run" in two.good("Status").output
    assert two.good("TrainVGG").ran == ["train"]
    assert "no damage" in one.good("Verify").output


def test_two_hosts_do_not_train_the_same_run_at_once(host: Hosts, bucket: Bucket) -> None:
    one, two, three = host("one"), host("two"), host("three", overlap="wait")
    for peer in (one, two, three):
        peer.configure(**LONG)
    with training(one, bucket) as running:
        (child,) = psutil.Process(running.process.pid).children()
        child.suspend()  # so that it is still training when the others have been refused
        result = two.luigi("TrainVGG")
        assert result.rc == 10
        assert "is already being worked on by process" in result.log
        assert "Traceback" not in result.text
        assert "being worked on by process" in two.good("Status").output
        with three.start("TrainVGG") as waiting:
            waiting.wait_for(lambda: "waiting for process" in waiting.output, "it waits")
            child.resume()
            running.finish(0)
            waiting.finish(0)
            assert "nothing left to do" in waiting.output
    started = [event for event in bucket.events() if (event["event"], event["stage"]) == ("started", "train")]
    assert len(started) == 1


@pytest.fixture
def data(host: Hosts, bucket: Bucket) -> Host:
    """A host whose data set is in the store."""
    one = host("one", retry_timeout=1, stale_seconds=2)
    one.good("DownloadCifar")
    return one


def foreign_lock(bucket: Bucket, key: str, stale_after: float) -> None:
    """Write a lock as of a process on another machine that never renews it."""
    record = {"host": "far", "pid": 1, "since": "2026-11-25T00:00:00Z", "machine": "far", "token": "far", "beat": 0}
    bucket.write(key, json.dumps({**record, "stale_after": stale_after}).encode())


def lock_key(one: Host) -> str:
    """Return the key of the lock on a host's training."""
    run = Chain(Workspace(one.copies), load(one.config)).run()
    assert run is not None
    return run.lock("train").relative_to(one.copies).as_posix()


def test_a_stale_lock_is_taken_over(data: Host, bucket: Bucket) -> None:
    key = lock_key(data)
    foreign_lock(bucket, key, stale_after=3600)
    assert data.luigi("TrainVGG").rc == 10
    assert key in bucket.objects()
    foreign_lock(bucket, key, stale_after=-1)  # the store's clock has a resolution of one second
    assert data.good("TrainVGG").ran == ["train"]
    assert key not in bucket.objects()


def test_a_host_that_lost_its_lock_stops_and_publishes_nothing(data: Host, bucket: Bucket) -> None:
    key = lock_key(data)
    data.configure(**{**LONG, "epochs": 2000})
    with training(data, bucket) as running:
        # Repeat it, as a host that takes a lock over does if the holder has just renewed it.
        while running.process.poll() is None and json.loads(bucket.read(key))["host"] != "far":
            foreign_lock(bucket, key, stale_after=3600)
            time.sleep(1)
        running.finish(10)
        assert "taken over by another host" in running.output
        assert "Traceback" not in running.output
    assert not bucket.objects("/train/manifest.json")
    assert json.loads(bucket.read(key))["host"] == "far"  # it left the other's lock alone


def test_only_missing_weights_are_trained_again(host: Hosts, bucket: Bucket, proxy: Proxy) -> None:
    """A network error, or a file of the right size with other content, must not restart a training from scratch."""
    one, two = host("one"), host("two", retry_timeout=1)
    one.good("TrainVGG")
    two.configure(epochs=2)
    key = bucket.key("/train/model.params")
    weights, recorded = bucket.read(key), bucket.manifest("train")
    proxy.trouble = lambda method, path: "500" if method == "GET" and path.endswith("model.params") else None
    result = two.luigi("TrainVGG")
    assert result.rc == 30
    assert "train/model.params: cannot download" in result.log
    proxy.quiet()
    bucket.write(key, weights[:-1] + bytes([weights[-1] ^ 1]))
    result = two.luigi("TrainVGG")
    assert result.rc == 30
    assert (
        "train/model.params: damaged, its SHA-256 does not match its manifest; restore it, or set the stage aside"
        in result.log
    )
    assert bucket.manifest("train") == recorded
    bucket.delete(key)
    result = two.good("TrainVGG")
    assert "train/model.params is missing" in result.log
    assert bucket.manifest("train")["details"]["epochs"] == 2
    assert [segment["how"] for segment in bucket.manifest("train")["details"]["segments"]] == ["started"]


def test_a_training_resumes_without_its_momentum_as_in_a_folder(host: Hosts, bucket: Bucket) -> None:
    one, two = host("one"), host("two")
    one.good("TrainVGG")
    two.configure(epochs=2)
    key = bucket.key("/train/trainer.npz")
    bucket.write(key, bucket.read(key)[:-100])
    result = two.good("TrainVGG")
    assert "resuming from model.params with zero momentum" in result.log
    assert "resumed from 1 epoch of" in result.log


def test_the_heartbeat_returns_as_soon_as_the_store_is_back(bucket: Bucket, in_reach: Proxy) -> None:
    lock = ObjectLock(Store(bucket.url, retry_timeout=0, stale_seconds=600), "work/locks/x.lock")
    pauses: list[float] = []

    class Ended(threading.Event):
        """Ends after five heartbeats; the store fails all but the last two."""

        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            if len(pauses) == 4:
                in_reach.quiet()
            return len(pauses) > 5

    assert lock.store.create(lock.key, lock._content())
    in_reach.trouble = lambda method, path: "500"
    lock._ended = Ended()
    lock._heartbeat()
    assert pauses == [100, 1, 1, 1, 100, 100]
    assert not lock.lost


def test_a_lock_renewed_at_the_last_moment_is_not_taken_over(
    bucket: Bucket, in_reach: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_lock(bucket, "work/locks/x.lock", stale_after=-1)
    lock = ObjectLock(Store(bucket.url, retry_timeout=10), "work/locks/x.lock")
    calls: list[str] = []

    def age(key: str, probe: str) -> float:
        calls.append(key)
        if len(calls) == 1:
            foreign_lock(bucket, "work/locks/x.lock", stale_after=3600)
        return 1.0

    monkeypatch.setattr(lock.store, "age", age)
    with pytest.raises(AlreadyRunning), lock.held("the stage", wait=False, on_wait=print):
        pass
    assert json.loads(bucket.read("work/locks/x.lock"))["host"] == "far"


@pytest.mark.parametrize(("timeout", "stale"), [(60, 90), (-1, 90), ("nan", 90)])
def test_a_retry_timeout_that_would_lose_a_lock_is_refused(host: Hosts, timeout: float, stale: float) -> None:
    result = host("one", retry_timeout=timeout, stale_seconds=stale).luigi("Status")
    assert result.rc == 2
    (line,) = [line for line in result.text.splitlines() if "retry_timeout" in line]
    assert f"found {timeout}, expected at most half of stale_seconds (90)" in line


def test_files_that_a_stage_removed_are_deleted_from_the_store(bucket: Bucket, in_reach: Proxy, tmp_path: Path) -> None:

    def published(host: str, epochs: int) -> list[str]:
        storage = ObjectStorage(Store(bucket.url), tmp_path / host)
        workspace = Workspace(storage.root, storage)
        folder = storage.root / "runs/d/r/train"
        storage.refresh([folder])
        workspace.fetch(folder, everything=True)
        curves = folder / "tensorboard"
        curves.mkdir(parents=True, exist_ok=True)
        for earlier in curves.iterdir():
            earlier.unlink()
        (curves / f"events.{epochs}").write_text(str(epochs))
        (folder / "model.params").write_text(str(epochs))
        manifest.write(folder, "train", ["model.params"], {}, {"epochs": epochs})
        workspace.publish(folder)
        assert sorted(f"{storage.key(folder)}/{name}" for name in storage.files(folder)) == bucket.objects()
        return [key.partition("/train/")[2] for key in bucket.objects() if not key.endswith("manifest.json")]

    assert published("one", 10) == ["model.params", "tensorboard/events.10"]
    assert published("one", 20) == ["model.params", "tensorboard/events.20"]
    bucket.write("runs/d/r/train/notes.txt", b"another's")
    assert published("two", 30) == ["model.params", "notes.txt", "tensorboard/events.30"]


def test_verify_reports_a_file_deleted_while_it_runs(bucket: Bucket, in_reach: Proxy, tmp_path: Path) -> None:
    storage = ObjectStorage(Store(bucket.url, retry_timeout=0), tmp_path / "mirror")
    workspace, folder = Workspace(storage.root, storage), storage.root / "runs/d/r/export"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text("model")
    recorded = manifest.write(folder, "export", ["model.onnx"], {}, {})
    workspace.publish(folder)
    bucket.delete("runs/d/r/export/model.onnx")
    assert manifest.damage(folder, recorded, storage) == ["export/model.onnx is missing"]


def test_events_of_every_hour_are_published(
    bucket: Bucket, in_reach: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "mirror", ObjectStorage(Store(bucket.url, retry_timeout=0), tmp_path / "mirror"))

    def tell(event: str, time: str) -> None:
        monkeypatch.setattr(events, "now", lambda: time)
        events.record(workspace, event)

    tell("started", "2026-11-26T14:59:59Z")
    tell("finished", "2026-11-26T16:00:01Z")
    in_reach.trouble = lambda method, path: "500" if method == "PUT" else None
    events.publish(workspace)
    assert bucket.events() == []
    in_reach.quiet()
    tell("rolled back", "2026-11-26T17:00:00Z")
    events.publish(workspace)
    assert [event["event"] for event in bucket.events()] == ["started", "finished", "rolled back"]
    assert len(bucket.objects("jsonl")) == 3
    in_reach.quiet()
    tell("pruned", "2026-11-26T17:30:00Z")
    events.publish(workspace)
    assert [method for method, _ in in_reach.seen] == ["HEAD", "GET", "PUT"]  # other hours are not sent again
    assert [event["event"] for event in events.read(workspace)] == ["started", "finished", "rolled back", "pruned"]
    shutil.rmtree(tmp_path / "mirror")  # as a user may
    tell("retired", "2026-11-26T17:40:00Z")
    events.publish(workspace)
    assert [event["event"] for event in bucket.events()][2:] == ["rolled back", "pruned", "retired"]
