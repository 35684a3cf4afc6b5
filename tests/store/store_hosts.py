"""Hosts that share nothing but a workspace in a store: each has its own cache folder and `luigi`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from luigi_runs import Result, Running, clean_environment, luigi_command, run
from s3_server import Proxy, environment

from pipeline.config import load
from pipeline.storage import storage_at
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain

TINY: dict[str, Any] = {
    "architecture": {"name": "tiny", "conv_arch": [[1, 4], [1, 8]], "batch_norm": True, "dense": [8]},
    "training": {
        "epochs": 1,
        "batch_size": 40,
        "learning_rate": 0.05,
        "validation_images": 40,
        "augmentation": {"flip": "random"},
    },
    "device": "cpu",
}


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read a host's `events.jsonl`, if it exists."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Bucket:
    """Direct access to the store."""

    def __init__(self, port: int, name: str) -> None:
        import boto3

        about = environment(port)
        self.name, self.url = name, f"s3://{name}/team"
        self._client = boto3.client(
            "s3",
            endpoint_url=about["AWS_ENDPOINT_URL"],
            aws_access_key_id=about["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=about["AWS_SECRET_ACCESS_KEY"],
            region_name=about["AWS_DEFAULT_REGION"],
        )
        self._client.create_bucket(Bucket=name)

    def objects(self, ending: str = "") -> list[str]:
        """Return the keys of the workspace's objects."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix="team/")
        keys = [entry["Key"].removeprefix("team/") for page in pages for entry in page.get("Contents", [])]
        return [key for key in keys if key.endswith(ending)]

    def key(self, ending: str) -> str:
        (found,) = (key for key in self.objects(ending) if not key.startswith("trash/"))
        return found

    def read(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self.name, Key=f"team/{key}")["Body"].read()

    def write(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=f"team/{key}", Body=content)

    def copied_to(self, place: str) -> str:
        """Copy the workspace to another place in the bucket. Returns its address."""
        for key in self.objects():
            source = {"Bucket": self.name, "Key": f"team/{key}"}
            self._client.copy_object(Bucket=self.name, Key=f"{place}/{key}", CopySource=source)
        return f"s3://{self.name}/{place}"

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=f"team/{key}")

    def manifest(self, stage: str) -> dict[str, Any]:
        return json.loads(self.read(self.key(f"/{stage}/manifest.json")))

    def weights(self) -> str:
        """Return the SHA-256 of the only run's weights."""
        return hashlib.sha256(self.read(self.key("/train/model.params"))).hexdigest()

    def events(self) -> list[dict[str, Any]]:
        """Return the published events of all hosts."""
        lines = b"".join(self.read(key) for key in self.objects(".jsonl")).splitlines()
        return [json.loads(line) for line in lines]


class Host:
    """A host: a folder with its cache, its luigi.cfg and a copy of the configuration.

    `proxy` is the one in front of its S3 server, None for another kind of store.
    """

    def __init__(self, folder: Path, url: str, proxy: Proxy | Any, archive: Path, **settings: Any) -> None:
        self.folder, self.url, self.proxy, self.archive = folder, url, proxy, archive
        self.cwd = folder / "empty"
        self.cwd.mkdir(parents=True)
        self.values: dict[str, Any] = {"data": {"name": "mini", "source": str(archive)}, **json.loads(json.dumps(TINY))}
        self.configure()
        self.settings(**settings)

    def settings(self, **settings: Any) -> None:
        """Write luigi.cfg."""
        all_settings = {"cache": self.folder / "cache", "retry_timeout": 15, "stale_seconds": 30, **settings}
        lines = [f"{name} = {value}" for name, value in all_settings.items()]
        (self.folder / "luigi.cfg").write_text("\n".join(["[vgg]", *lines]) + "\n")

    def configure(self, **training: Any) -> None:
        self.values["training"].update(training)
        self.config.write_text(yaml.safe_dump(self.values))

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def copies(self) -> Path:
        """The local folder with copies of the workspace's files."""
        return storage_at(self.url, self.folder / "cache").root

    def command(self, task: str, *arguments: str, scheduler: tuple[str, ...] = ("--local-scheduler",)) -> list[str]:
        about = ["--workspace", self.url] + ([] if task in ("Verify", "Compare") else ["--config", str(self.config)])
        return [*luigi_command(), "--module", "tasks", task, *about, *scheduler, *arguments]

    def environment(self) -> dict[str, str]:
        own = {"LUIGI_CONFIG_PATH": str(self.folder / "luigi.cfg"), "XDG_CACHE_HOME": str(self.folder / "cache")}
        return clean_environment(**(environment(self.proxy.port) if self.proxy else {}), **own)

    def luigi(self, task: str, *arguments: str) -> Result:
        """Run a task to its end. `ran` of the result lists the stages that this host started."""
        before = len(self.events())
        done = run(self.command(task, *arguments), self.cwd, self.environment())
        ran = [event["stage"] for event in self.events()[before:] if event["event"] == "started"]
        return Result(done.rc, done.output, done.log, done.seconds, ran)

    def good(self, task: str, *arguments: str) -> Result:
        """Like `luigi`, but must succeed."""
        result = self.luigi(task, *arguments)
        assert result.rc == 0 or (task == "Status" and result.rc == 3), result.text
        return result

    def start(self, task: str, *arguments: str, scheduler: tuple[str, ...] = ("--local-scheduler",)) -> Running:
        command = self.command(task, *arguments, scheduler=scheduler)
        return Running(command, self.cwd, self.environment(), self.folder)

    def events(self) -> list[dict[str, Any]]:
        return read_events(self.copies / "events.jsonl")


def local_weights(folder: Path, host: Host) -> str:
    """Return the SHA-256 of the weights that an undisturbed training with a host's configuration gives in a folder."""
    command = [*luigi_command(), "--module", "tasks", "TrainVGG", "--config", str(host.config), "--local-scheduler"]
    done = run([*command, "--workspace", str(folder)], host.cwd)
    assert done.rc == 0, done.text
    chain = Chain(Workspace(folder), load(host.config))
    path = chain.folder("train")
    assert path is not None
    return hashlib.sha256((path / "model.params").read_bytes()).hexdigest()
