"""Runs the real `luigi` command on a tiny network and data set, to be killed at chosen moments and run again.

Used by the tests of this folder and by `benchmarks/faults.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from luigi_runs import CHECKOUT, TIMEOUT, Running, archive_of, luigi_command

#: Epochs, and steps per epoch, of `tiny_config` on the images of `write_archive`.
EPOCHS, STEPS = 12, 16

CLASSES = ("cat", "dog", "owl", "fox")


def write_archive(path: Path, images: int = 148, seed: int = 1) -> Path:
    """Make a `.tar.gz` in CIFAR-10's binary layout: 2 x `images` training and 40 test images, bright in one quarter."""
    files = {"batches.meta.txt": "".join(f"{name}\n" for name in CLASSES).encode()}
    for number, (name, count) in enumerate(
        (("data_batch_1.bin", images), ("data_batch_2.bin", images), ("test_batch.bin", 40))
    ):
        generator = np.random.RandomState(seed * 10 + number)
        labels = np.arange(count) % len(CLASSES)
        pixels = generator.randint(0, 160, (count, 3, 32, 32))
        for image, label in zip(pixels, labels, strict=True):
            top, left = 16 * (label // 2), 16 * (label % 2)
            image[:, top : top + 16, left : left + 16] += 60
        rows = np.concatenate([labels[:, None], pixels.reshape(count, -1)], axis=1).astype(np.uint8)
        files[name] = rows.tobytes()
    return archive_of(path, files)


def tiny_config(archive: Path, **training: Any) -> dict[str, Any]:
    """A configuration with everything that makes resuming hard: dropout, batch norm, augmentation, momentum."""
    device = training.pop("device", "cpu")
    architecture = {"name": "tiny", "conv_arch": [[1, 4], [1, 8]], "batch_norm": True, "dense": [16], "classes": 4}
    architecture.update(training.pop("architecture", {}))
    settings = {
        "epochs": EPOCHS,
        "batch_size": 16,
        "optimizer": "nag",
        "learning_rate": 0.02,
        "normalize": True,
        "validation_images": 40,
        "augmentation": {"pad_crop": 2, "flip": "random", "cutout": 4},
        "checkpoint_seconds": 0.1,
        **training,
    }
    return {
        "data": {"name": "mini", "source": str(archive)},
        "architecture": architecture,
        "training": settings,
        "device": device,
    }


def another_host(name: str) -> list[str]:
    """Command prefix that runs a command under another host name in its own process namespace. Needs root."""
    if not name:
        return []
    named = 'hostname "$0" && exec "$@"'
    return ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", named, name]


@dataclass
class Place:
    """A workspace with a configuration, and the commands to run on it."""

    folder: Path
    archive: Path
    environment: dict[str, str] = field(default_factory=dict)
    workspace: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.workspace = self.folder / "artifacts"
        self.configure()

    def configure(self, **training: Any) -> None:
        """Write `run.yaml`: `tiny_config` with changed keys of `training`."""
        (self.folder / "run.yaml").write_text(yaml.safe_dump(tiny_config(self.archive, **training)))

    def start(
        self, task: str = "TrainVGG", *arguments: str, relative: bool = False, host: str = "", **environment: str
    ) -> Command:
        """Start `luigi --module tasks <task>` on this workspace, with relative or absolute paths.

        With `host`, run it on a simulated host of that name: it shares the folder, but has its own process namespace.
        """
        line = [*another_host(host), *luigi_command(), "--module", "tasks", task]
        if task != "Verify":
            line += ["--config", "run.yaml" if relative else str(self.folder / "run.yaml")]
        line += ["--workspace", "artifacts" if relative else str(self.workspace), *arguments]
        if not any("scheduler" in argument for argument in arguments):
            line.append("--local-scheduler")
        return Command(line, self.folder, {**self.environment, **environment})

    def run(self, task: str = "TrainVGG", *arguments: str, **environment: str) -> Command:
        """Like `start`, and wait for the end."""
        command = self.start(task, *arguments, **environment)
        command.finish()
        return command

    # --- files of the workspace ---------------------------------------------------------------------------------

    def stage(self, stage: str) -> Path:
        """The folder of a stage of the only run, or of the data set."""
        pattern = "datasets/mini-*" if stage == "dataset" else f"runs/*/*/{stage}"
        return next(iter(self.workspace.glob(pattern)), self.workspace / "not there")

    def manifest(self, stage: str = "train") -> dict[str, Any]:
        return json.loads((self.stage(stage) / "manifest.json").read_text())

    def digest(self) -> str:
        return hashlib.sha256((self.stage("train") / "model.params").read_bytes()).hexdigest()

    def log(self, stage: str = "train") -> str:
        path = self.stage(stage) / f"{stage}.log"
        return path.read_text() if path.exists() else ""

    def checkpoints(self) -> list[Path]:
        return sorted(self.workspace.glob("work/*/*/checkpoints/step-*.npz"))

    def newest_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return max((int(path.stem.split("-")[1]) for path in self.checkpoints()), default=0)

    def history(self) -> list[int]:
        lines = (self.stage("train") / "history.csv").read_text().splitlines()[1:]
        return [int(line.split(",")[0]) for line in lines]

    def events(self) -> list[dict[str, Any]]:
        path = self.workspace / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def started(self, stage: str) -> int:
        return sum(event["event"] == "started" and event["stage"] == stage for event in self.events())


def copy_of(source: Place, folder: Path, workspace: Path | None = None) -> Place:
    """Copy a workspace to `workspace` (default: in `folder`), with the default configuration."""
    place = Place(folder, source.archive)
    place.workspace = workspace or place.workspace
    shutil.copytree(source.workspace, place.workspace)
    return place


class Command(Running):
    """A running command with its output and all its descendant processes."""

    def __init__(self, line: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self._seen: dict[int, psutil.Process] = {}
        self._others: set[int] = set()
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("LUIGI", "CIFAR10_SOURCE"))}
        path = os.pathsep.join(filter(None, (str(CHECKOUT), clean.get("PYTHONPATH"))))
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "FAULT_TEST_MARK": self.mark}
        super().__init__(line, folder, {**clean, **own, **environment})

    def kill(self) -> None:
        """kill -9 the luigi process, and wait until all its descendants are gone."""
        super().kill()
        self.wait_until_gone()

    def check(self, code: int) -> Command:
        """Return itself if it has exited with `code`; fail otherwise."""
        assert self.code == code, f"exit code {self.code}, expected {code}:\n{self.output}"
        return self

    def children(self) -> list[int]:
        """The live descendants of this command, found by a mark in their environment.

        An exiting process frees its memory first, including that environment: those seen before are polled directly.
        """
        for pid in marked(self.mark, self._others):
            if pid != self.process.pid and pid not in self._seen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._seen[pid] = psutil.Process(pid)
        self._seen = {pid: process for pid, process in self._seen.items() if _alive(process)}
        return list(self._seen)

    def child(self) -> int:
        return self.wait_for(lambda: [pid for pid in self.children() if "pipeline." in _arguments(pid)], "a child")[0]

    def wait_until_gone(self, seconds: float = TIMEOUT) -> float:
        """Wait until no descendant is left. Returns the seconds that it took."""
        started = time.monotonic()
        while left := self.children():
            if time.monotonic() - started > seconds:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"processes left after {seconds:.0f} s: {[_arguments(pid) for pid in left]}")
            time.sleep(0.01)
        return time.monotonic() - started


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def flip_a_bit_of_the_momentum(checkpoint: Path) -> None:
    """Flip a bit of the data, not one of the bytes of a ZIP archive that nobody reads."""
    with np.load(checkpoint) as file:
        array = next(file[name] for name in file.files if name.startswith("momentum:") and file[name].any())
    content = bytearray(checkpoint.read_bytes())
    content[content.index(array.tobytes()) + array.nbytes // 2] ^= 4
    checkpoint.write_bytes(content)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill a file system except for `leave` bytes. Returns the file to remove."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(bytes(max(0, free - leave)))
    return filler


_CLOCK = '''
"""Sets Python's clocks back a day as soon as the file named by VGG_TEST_CLOCK exists."""
import datetime, os, time

def shift():
    return 86400.0 if os.path.exists(os.environ["VGG_TEST_CLOCK"]) else 0.0

real_time, real_datetime = time.time, datetime.datetime

class Shifted(real_datetime):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.now(tz) - datetime.timedelta(seconds=shift())

time.time = lambda: real_time() - shift()
datetime.datetime = Shifted
'''


def patient_client(place: Place) -> None:
    """Make the place's commands retry a lost luigid every second, not every half minute."""
    (place.folder / "patient.cfg").write_text("[core]\nrpc-retry-wait=1\nrpc-retry-attempts=100\n")
    place.environment = {"LUIGI_CONFIG_PATH": "patient.cfg"}


def shiftable_clock(place: Place) -> Path:
    """Make the clocks of the place's commands go back a day once the returned file exists."""
    (place.folder / "sitecustomize.py").write_text(_CLOCK)
    jump = place.folder / "jump"
    place.environment = {"VGG_TEST_CLOCK": str(jump), "PYTHONPATH": f"{place.folder}{os.pathsep}{CHECKOUT}"}
    return jump


def marked(mark: str, others: set[int] | None = None) -> Iterator[int]:
    """The live processes with a command's mark in their environment, which they have from the start.

    Adds those without it to `others` and skips them from then on: this is called a hundred times a second.
    """
    others = set() if others is None else others
    sign = f"FAULT_TEST_MARK={mark}".encode()
    for pid in {int(name) for name in os.listdir("/proc") if name.isdecimal()} - others:
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if environment and sign not in environment:  # empty for a moment during exec
                others.add(pid)
            elif environment and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                yield pid


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def _arguments(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
