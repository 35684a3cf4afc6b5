"""What goes wrong between a host and its store, and between hosts: nothing is lost, nothing half is taken for whole."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import Proxy
from store_hosts import Bucket, Host, Running, local_weights

from pipeline.chain import Chain
from pipeline.config import load
from pipeline.workspace import Workspace

Hosts = Callable[..., Host]

#: Long enough to be interrupted; a checkpoint after every few steps.
LONG: dict[str, Any] = {"epochs": 40, "checkpoint_seconds": 0.05}


def is_upload(method: str, path: str, ending: str = "") -> bool:
    return method == "PUT" and path.partition("?")[0].endswith(ending)


def checkpoint(bucket: Bucket) -> str:
    """The newest published checkpoint, "" while there is none."""
    return max((key for key in bucket.objects(".npz") if "/checkpoints/" in key), default="")


def training(host: Host, bucket: Bucket) -> Running:
    """A training that has published a checkpoint and goes on."""
    running = host.start("TrainVGG")
    running.wait_for(lambda: checkpoint(bucket), "a checkpoint was published")
    return running


def test_server_errors_cut_uploads_and_slow_answers_are_tried_again(host: Hosts, bucket: Bucket, proxy: Proxy) -> None:
    one = host("one")
    kinds, turns = itertools.cycle(["500", "cut", "slow", "500", "cut"]), itertools.count()
    slow = itertools.count()

    def trouble(method: str, path: str) -> str | None:
        if next(turns) % 4:
            return None
        kind = next(kinds)
        return "500" if kind == "slow" and next(slow) >= 2 else kind  # twice are enough: each takes seconds

    proxy.trouble = trouble
    result = one.good("TrainVGG")
    assert result.ran == ["dataset", "train"]
    assert {entry.split()[0] for entry in proxy.troubled} == {"500", "cut", "slow"}
    assert {"cut PUT", "500 GET"} <= set(proxy.troubled)
    proxy.quiet()
    assert "all as recorded" in host("two").good("Verify").output


def test_a_result_that_cannot_be_uploaded_is_kept_and_published_by_the_next_command(
    host: Hosts, bucket: Bucket, proxy: Proxy
) -> None:
    one = host("one", patience_seconds=2)
    proxy.trouble = lambda method, path: "500" if is_upload(method, path, "model.params") else None
    result = one.luigi("TrainVGG")
    assert result.rc == 30
    (line,) = [line for line in result.log.splitlines() if "cannot upload" in line]
    assert "train/model.params: cannot upload" in line
    assert "the same command publishes it without doing the work again" in line
    assert "Traceback" not in result.text
    assert not [key for key in bucket.objects("manifest.json") if "/train/" in key]
    assert "train     will run  made here, but not in the store yet" in one.good("Status").output
    proxy.quiet()
    again = one.good("TrainVGG")
    assert again.ran == []
    assert "was made here before, is published now" in again.log
    assert "train     done" in host("two").good("Status").output


def test_a_store_that_is_away_costs_no_training(host: Hosts, bucket: Bucket, proxy: Proxy) -> None:
    one = host("one", patience_seconds=1)
    one.configure(**LONG)
    proxy.trouble = lambda method, path: "500" if "checkpoints" in path and method in ("PUT", "POST") else None
    result = one.good("TrainVGG")
    assert "a checkpoint could not be published, training goes on" in result.log
    assert bucket.manifest("train")["details"]["epochs"] == LONG["epochs"]
    assert bucket.manifest("train")["details"]["resumed"] == 0


def test_another_host_goes_on_from_the_published_checkpoint_of_a_killed_one_exactly(
    host: Hosts, bucket: Bucket, tmp_path: Path
) -> None:
    one, two = host("one"), host("two")
    one.configure(**LONG)
    two.configure(**LONG)
    with training(one, bucket) as running:
        running.kill()
    result = two.good("TrainVGG")
    assert result.ran == ["train"]
    assert "which another host published" in result.log
    details = bucket.manifest("train")["details"]
    assert (details["resumed"], details["exact"]) == (1, True)
    assert bucket.weights() == local_weights(tmp_path / "undisturbed", two)
    assert checkpoint(bucket) == ""
    # The first host's own, older checkpoints do not count any more.
    assert one.good("TrainVGG").ran == []


def test_a_host_that_dies_while_it_uploads_leaves_nothing_that_counts(
    host: Hosts, bucket: Bucket, proxy: Proxy
) -> None:
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
    assert "all as recorded" in one.good("Verify").output


def test_two_hosts_do_not_train_the_same_run_at_once(host: Hosts, bucket: Bucket) -> None:
    one, two, three = host("one"), host("two"), host("three", overlap="wait")
    for each in (one, two, three):
        each.configure(**{**LONG, "epochs": 200})
    with training(one, bucket) as running:
        result = two.luigi("TrainVGG")
        assert result.rc == 10
        assert "is already being worked on by process" in result.log
        assert "Traceback" not in result.text
        assert "being worked on by process" in two.good("Status").output
        with three.start("TrainVGG") as waiting:
            waiting.wait_for(lambda: "waiting for process" in waiting.text, "it waits")
            running.finish(0)
            waiting.finish(0)
            assert "done meanwhile" in waiting.text
    started = [event for event in bucket.events() if (event["event"], event["stage"]) == ("started", "train")]
    assert len(started) == 1


@pytest.fixture
def data(host: Hosts, bucket: Bucket) -> Host:
    """A host whose data set is in the store."""
    one = host("one", stale_seconds=2)
    one.good("DownloadCifar")
    return one


def foreign_lock(bucket: Bucket, key: str, stale_after: float) -> None:
    """Write a lock as a process of another machine would that is never heard of again."""
    record = {"host": "far", "pid": 1, "since": "2026-11-25T00:00:00Z", "machine": "far", "token": "far", "beat": 0}
    bucket.write(key, json.dumps({**record, "stale_after": stale_after}).encode())


def lock_key(one: Host) -> str:
    """The key of the lock on a host's training."""
    found = Chain(Workspace(one.mirror), load(one.config)).run()
    assert found is not None
    return found.lock("train").relative_to(one.mirror).as_posix()


def test_a_lock_that_nobody_has_renewed_is_taken_over(data: Host, bucket: Bucket) -> None:
    key = lock_key(data)
    foreign_lock(bucket, key, stale_after=3600)
    assert data.luigi("TrainVGG").rc == 10
    assert key in bucket.objects()
    foreign_lock(bucket, key, stale_after=-1)  # a store tells its time in whole seconds
    assert data.good("TrainVGG").ran == ["train"]
    assert key not in bucket.objects()


def test_who_lost_its_lock_stops_and_publishes_nothing(data: Host, bucket: Bucket) -> None:
    key = lock_key(data)
    data.configure(**{**LONG, "epochs": 2000})
    with training(data, bucket) as running:
        # Whoever takes a lock over looks whether its holder has just renewed it, and then tries again.
        while running.process.poll() is None and json.loads(bucket.read(key))["host"] != "far":
            foreign_lock(bucket, key, stale_after=3600)
            time.sleep(1)
        running.finish(10)
        assert "another host took it over" in running.text
        assert "Traceback" not in running.text
    assert not bucket.objects("/train/manifest.json")
    assert json.loads(bucket.read(key))["host"] == "far"  # it left the other's lock alone
