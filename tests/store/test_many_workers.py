"""Several `luigi` commands share a comparison under one luigid: each run trains once, even if a worker is killed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from luigi_runs import Running
from luigid_process import luigid
from store_hosts import TINY, Bucket, Host, read_events

WIDTHS = (2, 3, 4)


class Team:
    """Hosts that share a folder of configurations and a workspace in a folder or a store."""

    def __init__(self, folder: Path, url: str, bucket: Bucket, hosts: list[Host], port: int) -> None:
        self.folder, self.url, self.bucket, self.hosts, self.port = folder, url, bucket, hosts, port
        for host in hosts:
            host.url, host.cwd = url, folder

    def start(self, host: Host) -> Running:
        scheduler = ("--scheduler-host", "127.0.0.1", "--scheduler-port", str(self.port))
        patient = ("--worker-keep-alive", "--worker-wait-interval", "1", "--configs", "*.yaml")
        return host.start("Compare", *patient, scheduler=scheduler)

    @property
    def is_stored(self) -> bool:
        return self.url.startswith("s3:")

    def events(self) -> list[dict[str, Any]]:
        if self.is_stored:
            return [event for host in self.hosts for event in host.events()]
        return read_events(Path(self.url) / "events.jsonl")

    def count(self, event: str, stage: str) -> Counter[str]:
        """Count the events of a kind and stage per run."""
        return Counter(line["run"] for line in self.events() if (line["event"], line["stage"]) == (event, stage))

    def manifests(self, stage: str) -> dict[str, dict[str, Any]]:
        """Return the manifests of a stage, by run."""
        if self.is_stored:
            keys = self.bucket.objects(f"/{stage}/manifest.json")
            return {key.split("/")[2]: json.loads(self.bucket.read(key)) for key in keys}
        paths = Path(self.url).glob(f"runs/*/*/{stage}/manifest.json")
        return {path.parts[-3]: json.loads(path.read_text()) for path in paths}

    def pages(self) -> int:
        if self.is_stored:
            return len([key for key in self.bucket.objects("manifest.json") if key.startswith("comparisons/")])
        return len(list(Path(self.url).glob("comparisons/*/manifest.json")))

    def checkpoint_of(self, run: str) -> list[Any]:
        if self.is_stored:
            return [key for key in self.bucket.objects(".npz") if f"/{run}/checkpoints/" in key]
        return list(Path(self.url).glob(f"work/*/{run}/checkpoints/step-*.npz"))

    def trained_by(self, running: Running) -> str:
        """Return the run that a command is training, once it has a checkpoint; else ""."""
        pid = running.process.pid
        mine = [event for event in self.events() if event["stage"] == "train" and event["pid"] == pid]
        busy = mine[-1]["run"] if mine and mine[-1]["event"] == "started" else ""
        return busy if busy and self.checkpoint_of(busy) else ""


@pytest.fixture(params=["folder", "store"])
def team(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket, host: Any, archive: Path) -> Any:
    shared = tmp_path / "shared"
    shared.mkdir()
    for width in WIDTHS:
        architecture = {"name": f"w{width}", "conv_arch": [[1, width], [1, width]], "batch_norm": True, "dense": []}
        training = {**TINY["training"], "epochs": 20, "checkpoint_seconds": 0.05}
        value = {**TINY, "data": {"name": "mini", "source": str(archive)}, "architecture": architecture}
        (shared / f"w{width}.yaml").write_text(yaml.safe_dump({**value, "training": training}))
    url = bucket.url if request.param == "store" else str(tmp_path / "artifacts")
    hosts = [host(f"host{number}") for number in range(4)]
    with luigid(tmp_path / "luigid") as central:
        yield Team(shared, url, bucket, hosts, central.port)


def test_three_workers_and_a_kill_train_every_run_once_and_make_one_page(team: Team) -> None:
    one, two, three, four = team.hosts
    with team.start(one) as first, team.start(two) as second, team.start(three) as third:
        everyone = (first, second, third)

        def training() -> tuple[Running, str] | None:
            return next(((command, run) for command in everyone if (run := team.trained_by(command))), None)

        victim, lost = first.wait_for(training, "one of them trains a run")
        victim.kill()
        with team.start(four) as fourth:
            for running in (*(command for command in everyone if command is not victim), fourth):
                # Luigi's codes for "another worker runs it" and "left to another worker" are fine, too.
                assert running.finish() in (0, 10, 25), running.output
                assert "Traceback" not in running.output
    trained = team.manifests("train")
    assert len(trained) == len(WIDTHS)
    assert set(team.count("finished", "train").values()) == {1}
    started = team.count("started", "train")
    assert started.pop(lost) == 2
    assert set(started.values()) == {1}
    assert trained[lost]["details"]["resumed"] == 1  # from where the killed worker was
    assert all(train["details"]["exact"] for train in trained.values())
    assert set(team.count("started", "evaluate").values()) == {1}
    assert sum(team.count("started", "compare").values()) == 1
    assert team.pages() == 1
