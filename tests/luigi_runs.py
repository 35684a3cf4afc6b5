"""Runs the real `luigi` command on a small data set and a tiny network, and checks what it did to the workspace.

For tests of the whole chain: a run takes seconds, starts in an empty folder, and inherits no configuration.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.config import load
from pipeline.retraining.generations import STAGES
from pipeline.workspace import Run, Workspace, events
from pipeline.workspace.freshness import Chain

CHECKOUT = Path(__file__).resolve().parent.parent

#: Time limits (s) of a run and of waiting for one condition. Generous: the machine may be busy.
LIMIT, TIMEOUT = 300, 120.0

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

CONFIG: dict[str, Any] = {
    "architecture": {"name": "tiny", "conv_arch": [[1, 4], [1, 8]], "batch_norm": True, "dense": []},
    "training": {"epochs": 1, "batch_size": 40, "learning_rate": 0.05, "validation_images": 40, "normalize": True},
    "device": "cpu",
}

#: Sets the architecture keys that CONFIG leaves at their defaults, with a matching training: the shape of vgg8.yaml.
VGG8 = {
    "architecture": {
        "name": "tiny8",
        "conv_arch": [[2, 4], [2, 8]],
        "stem": 8,
        "pool": "first",
        "batch_norm": {"scale": False, "momentum": 0.6},
        "activation": "gelu",
        "global_pool": "max",
        "dense": [],
    },
    "training": {
        **CONFIG["training"],
        "optimizer": "muon",
        "momentum": 0.6,
        "initializer": "whitening",
        "zero_output": True,
        "augmentation": {"pad_crop": 2, "padding": "reflect", "flip": "alternating"},
    },
}


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without variables that configure Luigi, Python, MXNet or this plugin."""
    foreign = ("LUIGI_", "CIFAR10_", "CIFAR100_", "PYTHON", "OMP_", "GOMP_", "MXNET_", "DMLC_", "VGG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **more}


def luigi_command() -> list[str]:
    script = Path(sys.executable).with_name("luigi")
    return [str(script)] if script.exists() else [sys.executable, "-m", "luigi"]


@dataclass(frozen=True)
class Result:
    """The outcome of a command. `ran` lists the stages that it ran, in chain order."""

    rc: int
    output: str
    log: str
    seconds: float
    ran: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.output + self.log


def run(command: list[str], cwd: Path, environment: dict[str, str] | None = None, limit: float = LIMIT) -> Result:
    """Run a command to completion. Fails after `limit` seconds."""
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment() if environment is None else environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=limit,
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def small_archive(path: Path, train: int = 240, test: int = 60, seed: int = 0) -> Path:
    """Make an archive of noisy coloured squares (ten learnable classes) in CIFAR-10's binary layout."""
    half = train // 2
    files = {"batches.meta.txt": "".join(f"{name}\n" for name in CLASSES).encode()}
    files |= {f"data_batch_{number}.bin": _records(half, seed + number) for number in (1, 2)}
    files["test_batch.bin"] = _records(test, seed + 99)
    return archive_of(path, files)


def archive_of(path: Path, files: dict[str, bytes]) -> Path:
    """Make a `.tar.gz` with these files in CIFAR-10's folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(buffer.getvalue(), 1, mtime=0))
    return path


def _records(count: int, seed: int) -> bytes:
    generator = np.random.RandomState(seed)
    labels = np.arange(count) % len(CLASSES)
    colours = np.random.RandomState(1).randint(40, 216, (len(CLASSES), 3))
    images = colours[labels][:, :, None] + generator.randint(-40, 40, (count, 3, 32 * 32))
    return np.concatenate([labels[:, None], images.reshape(count, -1)], 1).astype(np.uint8).tobytes()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Running:
    """A background command in its own session. Killed at the end of a `with` block."""

    def __init__(self, command: list[str], cwd: Path, environment: dict[str, str], folder: Path | None = None) -> None:
        self._output = (folder or cwd) / f"output-{time.monotonic_ns()}.txt"
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for `condition` to return something true, and return it. Fails if the command ends first."""
        deadline = time.monotonic() + TIMEOUT
        while not (value := condition()):
            if self.code is not None and not (value := condition()):
                raise AssertionError(f"ended with {self.code} before {what}:\n{self.output}")
            if value:
                break
            assert time.monotonic() < deadline, f"not within {TIMEOUT:.0f} s: {what}\n{self.output}"
            time.sleep(0.005)
        return value

    def finish(self, code: int | None = None) -> int:
        """Wait for the command to end. Checks the exit code if one is given."""
        try:
            actual = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not finished within {LIMIT} s:\n{self.output}") from None
        assert code is None or actual == code, f"exit code {actual}, expected {code}:\n{self.output}"
        return actual

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9 the command. Its child processes notice and end by themselves."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *about: object) -> None:
        if self.code is None:
            self.kill()
            print(self.output[-3000:])


class SmallChain:
    """A configuration file, an archive, a workspace and an empty working folder, all below `root`."""

    def __init__(self, root: Path, archive: Path | None = None, config: dict[str, Any] | None = None) -> None:
        self.root = root
        self.config, self.workspace, self.cwd = root / "config.yaml", root / "artifacts", root / "empty"
        self.cwd.mkdir(parents=True)
        self.archive = archive or small_archive(root / "mini.tar.gz")
        data = {"data": {"name": "mini", "source": str(self.archive)}}
        self.values: dict[str, Any] = {**data, **copy.deepcopy(config or CONFIG)}
        self.configure()

    def configure(self, **changes: Any) -> None:
        """Change keys of the configuration and write it: `configure(training__epochs=2)`."""
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = self.values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[key] = value
        self.config.write_text(yaml.safe_dump(self.values))

    def luigi(
        self, task: str, *arguments: str, scheduler: tuple[str, ...] = ("--local-scheduler",), **environment: str
    ) -> Result:
        """Run a task of the plugin. Fails if it changed files of a stage without recording that it ran."""
        workspace = Workspace(self.workspace)
        events_before, files_before = len(events.read(workspace)), self.files()
        done = run(self._command(task, *scheduler, *arguments), self.cwd, clean_environment(**environment))
        new_events = events.read(workspace)[events_before:]
        ran = sorted((event["stage"] for event in new_events if event["event"] == "started"), key=STAGES.index)
        if task not in ("SetAside", "Restore"):
            changed = {path for path, state in self.files().items() if files_before.get(path) != state}
            assert {_stage_of(path) for path in changed} <= set(ran), f"{changed} changed, only {ran} ran"
        return Result(done.rc, done.output, done.log, done.seconds, ran)

    def start(
        self, task: str, *arguments: str, scheduler: tuple[str, ...] = ("--local-scheduler",), **environment: str
    ) -> Running:
        command = self._command(task, *scheduler, *arguments)
        return Running(command, self.cwd, clean_environment(**environment), self.root)

    def _command(self, task: str, *arguments: str) -> list[str]:
        about = ["--workspace", str(self.workspace)]
        about += [] if task == "Verify" else ["--config", str(self.config)]
        return [*luigi_command(), "--module", "tasks", task, *about, *arguments]

    def report(self, *arguments: str, **environment: str) -> Result:
        """Run the whole chain and check that it succeeds."""
        result = self.luigi("Report", *arguments, **environment)
        assert result.rc == 0, result.text
        return result

    def status(self, *arguments: str) -> str:
        result = self.luigi("Status", *arguments)
        assert result.rc in (0, 3), result.text
        assert result.ran == []
        return result.output

    def chain(self, generation: str = "") -> Chain:
        return Chain(Workspace(self.workspace), load(self.config), generation)

    def run(self, generation: str = "") -> Run:
        """The run's folders. Needs a data set."""
        run = self.chain(generation).run()
        assert run is not None
        return run

    def folder(self, stage: str, generation: str = "") -> Path:
        folder = self.chain(generation).folder(stage)
        assert folder is not None
        return folder

    def manifest(self, stage: str) -> dict[str, Any]:
        manifest = self.chain().manifest(stage)
        assert manifest is not None
        return manifest

    def files(self) -> dict[Path, tuple[int, int, int]]:
        """Every artifact of the workspace with its inode, size and modification time."""
        files = {}
        for folder in ("datasets", "runs"):
            for path in (self.workspace / folder).rglob("*"):
                if path.is_file():
                    status = path.stat()
                    files[path.relative_to(self.workspace)] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return files


def _stage_of(path: Path) -> str:
    return path.parts[3] if path.parts[0] == "runs" else "dataset"


def assert_fails_clearly(result: Result, code: int, *words: str) -> None:
    """Assert that the command exited with `code` and one line contains all words, without a traceback."""
    assert result.rc == code, result.text
    assert "Traceback" not in result.text
    assert any(all(word in line for word in words) for line in result.text.splitlines()), result.text
