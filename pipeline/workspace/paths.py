"""Every path and every name in a workspace: nothing else puts one together.

datasets/<name>-<digest8>/            arrays ready to memory-map, manifest.json
datasets/sources/<name>-<key8>.json   which data set a source turned out to be
runs/<dataset>/<run>/<stage>/         the files of one stage, manifest.json
work/                                 checkpoints, partial downloads, locks: disposable
comparisons/<name>/                   the ranking page of a comparison
current/<data name>/<architecture name>.json   which run is the promoted one
current/<data name>/<architecture name>/       its model as services load it, see `served`
trash/<when>/<path>                   what a user set aside, under the path that it had
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pipeline import address
from pipeline.config import Architecture, Config, Data, fingerprint
from pipeline.errors import from_os_error
from pipeline.files import MANIFEST, now
from pipeline.storage import LOCAL, Storage, locks, storage_of
from pipeline.workspace.manifest import digests, problems, read

#: The stages of a run in order; the data set comes before them all.
RUN_STAGES = ("train", "evaluate", "export", "report")

#: The folders of a run: those of its stages, and that of the promotion gate.
RUN_FOLDERS = (*RUN_STAGES, "promote")


@dataclass(frozen=True)
class Workspace:
    """A folder that holds data sets, runs and work in progress.

    With an object store for `storage` the workspace itself is there, and `root` holds copies here: what counts as
    being there is what is in the store.
    """

    root: Path
    storage: Storage = field(default=LOCAL, compare=False)

    def unpublished(self, path: Path) -> list[str]:
        """In words, that a manifest or pointer was made here and is not in the workspace's store yet; else nothing."""
        return [f"made here, but not in the store yet: {self.shown(path)}"] if self.storage.is_unpublished(path) else []

    def shown(self, path: Path) -> str:
        """A path of the workspace as people find it: in a store, its address there."""
        return self.storage.shown(path)

    def problems(self, folder: Path, stage: str, inputs: Mapping[str, str | None]) -> list[str]:
        """Why the stage in `folder` does not count as complete for `inputs`, in words; empty when it does."""
        return self.unpublished(folder / MANIFEST) + problems(folder, stage, inputs, self.storage)

    def move(self, folder: Path, target: Path) -> None:
        """Move a folder within the workspace. Raises `OSError`, or `PipelineError` from a store."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self.storage.move(folder, target)

    def refresh(self) -> None:
        """Have at hand what there is of everything."""
        self.storage.refresh([self.root])
        for pattern in ("datasets/*", "current/*", "comparisons/*"):
            self.storage.refresh_matching(pattern)
        self.storage.refresh_matching("runs/*/*", RUN_FOLDERS)

    def listed(self, folder: Path) -> list[Path]:
        """What is in a folder here, by name. Raises `WorkspaceError` for one that this user cannot list."""
        try:
            return [folder / name for name in LOCAL.names(folder)]
        except OSError as error:
            raise from_os_error(error, "list it") from error

    def fetch(self, folder: Path, everything: bool = False, pattern: str = "*") -> None:
        """Have the files of a finished stage here as its manifest recorded them, those whose names match a pattern.

        With `everything` also what the manifest does not count: logs, the trainer's state. A folder without a
        manifest has nothing to fetch. Raises `NotAsRecorded` when a file in the store is not what it should be.
        """
        recorded = read(folder)
        if recorded is not None:
            files = {name: about for name, about in recorded["files"].items() if fnmatch.fnmatch(name, pattern)}
            self.storage.fetch(folder, files, digests(recorded), everything)

    def publish(self, folder: Path, recorded_only: bool = False) -> None:
        """Let other hosts see a finished stage, with `recorded_only` just the files that are as its manifest recorded.

        Raises `WorkspaceError` when that fails, `AlreadyRunning` when a lock was lost meanwhile.
        """
        recorded = read(folder)
        if recorded is not None:
            only = digests(recorded) if recorded_only else None
            self.storage.publish(folder, recorded["files"], only)

    @contextlib.contextmanager
    def hold(
        self, lock: Path, what: str, wait: bool = False, waiting: locks.Waiting = lambda line: None
    ) -> Iterator[int]:
        """Hold a lock against processes here and on other hosts, as `locks.hold` does; gives its file's descriptor."""
        with locks.hold(lock, what, wait, waiting) as descriptor, self.storage.hold(lock.stem, what, wait, waiting):
            yield descriptor

    def holder(self, lock: Path) -> locks.Holder | None:
        """Who holds a lock, here or on another host, or None."""
        return locks.holder(lock) or self.storage.holder(lock.stem)

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def downloads(self) -> Path:
        """Partial downloads and half-unpacked data sets."""
        return self.work / "downloads"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    def in_trash(self, path: Path) -> Path:
        """The place in the trash for `path` of the workspace, when it is moved there now."""
        return self.trash / now().replace(":", "") / path.relative_to(self.root)

    @property
    def events(self) -> Path:
        """One JSON object a line: what started, finished, failed."""
        return self.root / "events.jsonl"

    @property
    def published_events(self) -> Path:
        """For a workspace in a store: the file that says how many of this host's events are in the store."""
        return self.work / "events-published.json"

    def dataset(self, dataset_id: str) -> Path:
        return self.root / f"datasets/{dataset_id}"

    def source_pointer(self, data: Data) -> Path:
        """The file that says which data set came out of this source."""
        return self.root / f"datasets/sources/{data.name}-{source_key(data)}.json"

    def former_pointers(self, data: Data) -> Iterator[Path]:
        """The same as it was called when a password or token still counted, and so did file:// before a path."""
        for location in (data.source, f"file://{data.source}"):
            yield self.root / f"datasets/sources/{data.name}-{_key(data, location)}.json"

    def seen_source(self, data: Data) -> Path:
        """For a workspace in a store: the file that says what this host's own copy of the source was found to be."""
        return self.work / "sources" / self.source_pointer(data).name

    def source_listing(self, data: Data) -> Path:
        """For a folder of images: the file that says what was in it when this host read it."""
        return self.work / "sources" / self.source_pointer(data).with_suffix(".csv").name

    def current(self, config: Config) -> Path:
        """The file that says which run is the promoted one, of all that trained this architecture on this data set.

        Both count by name, so that a changed architecture or new images compete with what was there before.
        """
        return self.root / "current" / config.data.name / f"{config.architecture.name}.json"

    def currents(self) -> list[Path]:
        """All such files of the workspace."""
        found = (path for data in self.listed(self.root / "current") for path in self.listed(data))
        return [path for path in found if path.suffix == ".json"]

    def run(self, dataset_id: str, run_id: str) -> Run:
        return Run(self, dataset_id, run_id)

    def all_runs(self, data: str = ".+") -> list[Run]:
        """All runs that have a folder here, whatever state they are in; `data` is a pattern of their data's name."""
        name = re.compile(rf"(?:{data})-[0-9a-f]{{8}}")
        datasets = [folder for folder in self.listed(self.runs) if name.fullmatch(folder.name)]
        return [Run(self, folder.name, run.name) for folder in datasets for run in self.listed(folder)]

    def comparison(self, name: str) -> Path:
        """The folder of a comparison: `index.html`, its tables as CSV, `manifest.json`."""
        return self.root / "comparisons" / name

    def comparisons(self) -> list[Path]:
        """The folders of all comparisons."""
        return self.listed(self.root / "comparisons")

    @property
    def locks(self) -> Path:
        return self.work / "locks"

    def lock(self, name: str) -> Path:
        return self.locks / f"{name}.lock"

    def readers_lock(self, dataset_id: str) -> Path:
        """Shared by the stages that read a data set; who moves it away holds it alone."""
        return self.lock(f"{dataset_id}.readers")


@dataclass(frozen=True)
class Run:
    """The folders of one run: one architecture trained on one data set, in one generation."""

    workspace: Workspace
    dataset_id: str
    run_id: str

    @property
    def root(self) -> Path:
        return self.workspace.root / self.place

    def stage(self, stage: str) -> Path:
        # One division for all parts: a comparison of 1,000 runs asks thousands of times, and pathlib is slow.
        return self.workspace.root / f"{self.place}/{stage}"

    @property
    def generation(self) -> str:
        return self.run_id.partition("@")[2]

    def generations(self) -> list[Run]:
        """The other runs of this architecture on this data set, by name, whatever state they are in."""
        base = self.run_id.partition("@")[0]
        names = [path.name for path in self.workspace.listed(self.root.parent) if path.name != self.run_id]
        return [Run(self.workspace, self.dataset_id, name) for name in names if name.partition("@")[0] == base]

    @property
    def place(self) -> str:
        """The run's folder as seen from the workspace."""
        return f"runs/{self.dataset_id}/{self.run_id}"

    @property
    def work(self) -> Path:
        """Checkpoints and other work in progress of this run."""
        return self.workspace.work / self.dataset_id / self.run_id

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def curves(self) -> Path:
        """Where the training's TensorBoard files are, if it was asked for them."""
        return self.stage("train") / "tensorboard"

    def log(self, stage: str) -> Path:
        """The log of a stage's process, next to its artefacts."""
        return self.stage(stage) / f"{stage}.log"

    def lock(self, stage: str) -> Path:
        return self.workspace.lock(f"{self.dataset_id}.{self.run_id}.{stage}")

    @property
    def job_lock(self) -> Path:
        """Held by the training itself: a process on another host does not inherit the lock of the one that asked."""
        return self.lock("train-process")


def workspace_of(pointer: Path) -> Workspace:
    """The workspace that a file `current/<data name>/<architecture name>.json` belongs to."""
    root = pointer.absolute().parents[2]
    return Workspace(root, storage_of(root))


def dataset_id(name: str, digest: str) -> str:
    return f"{name}-{digest[:8]}"


def run_id(architecture: Architecture, generation: str = "") -> str:
    """`vgg11-1a2b3c4d`, or `vgg11-1a2b3c4d@2026-W48` for a named generation."""
    return f"{architecture.name}-{fingerprint(architecture)[:8]}" + (f"@{generation}" if generation else "")


def seed_generation(seed: int) -> str:
    """The generation of a run that differs from the plain one in `training.seed` alone: `seed-3`."""
    return f"seed-{seed}"


def generation_seed(generation: str) -> int | None:
    """The seed that a generation of that name is trained with; None for any other name."""
    match = re.fullmatch(r"seed-(0|[1-9]\d{0,9})", generation)
    return int(match[1]) if match and int(match[1]) < 2**31 else None


def with_generation_seed(config: Config, generation: str) -> Config:
    """The configuration of a generation: with another seed for `seed-N`, and for any other by `retrain.new_seed`."""
    seed = generation_seed(generation)
    if seed is None and generation and config.retrain.new_seed:
        seed = int(hashlib.sha256(f"{config.training.seed} {generation}".encode()).hexdigest()[:8], 16) % 2**31
    if seed is None or seed == config.training.seed:
        return config
    return msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, seed=seed))


def source_key(data: Data) -> str:
    """8 hex digits that name a source: its checksum where one is given, else its location without secrets."""
    return _key(data, address.identity(data.source))


def _key(data: Data, location: str) -> str:
    identity = data.sha256.lower() if data.sha256 else location
    return hashlib.sha256(f"{data.name} {identity}".encode()).hexdigest()[:8]
