"""Every path and name in a workspace. No other module builds one.

datasets/<name>-<digest8>/            arrays ready to memory-map, manifest.json
datasets/sources/<name>-<key8>.json   which data set a source holds
runs/<dataset>/<run>/<stage>/         the files of one stage, manifest.json
work/                                 checkpoints, partial downloads, locks: disposable
comparisons/<name>/                   the ranking page of a comparison
current/<data name>/<architecture name>.json   the pointer to the current run
current/<data name>/<architecture name>/       its model as services load it, see `served`
trash/<when>/<path>                   what was set aside, pruned or retired, under its former path
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
from pipeline.errors import WorkspaceError, from_os_error
from pipeline.files import MANIFEST, now
from pipeline.storage import LOCAL, Storage, locks, storage_of
from pipeline.workspace.manifest import digests, problems, read

#: The stages of a run in order. The data set comes before them.
RUN_STAGES = ("train", "evaluate", "export", "report")

#: The folders of a run: one per stage, and one for the promotion gate.
RUN_FOLDERS = (*RUN_STAGES, "promote")


@dataclass(frozen=True)
class Workspace:
    """A folder that holds data sets, runs and work in progress.

    If `storage` is an object store, the workspace is what the store holds, and `root` has local copies.
    """

    root: Path
    storage: Storage = field(default=LOCAL, compare=False)

    def unpublished(self, path: Path) -> list[str]:
        """Return a line that says that the manifest or pointer at `path` is not published yet; empty if it is."""
        return [f"made here, but not in the store yet: {self.shown(path)}"] if self.storage.is_unpublished(path) else []

    def require_published(self, folder: Path) -> None:
        """Raise `WorkspaceError` if the stage in `folder` is not in the store yet: moved there, it would be lost."""
        for line in self.unpublished(folder / MANIFEST):
            raise WorkspaceError(f"{line}; publish it first: run the command that made it again")

    def shown(self, path: Path) -> str:
        """Return a path as users know it: in a store, its address."""
        return self.storage.shown(path)

    def problems(self, folder: Path, stage: str, inputs: Mapping[str, str | None]) -> list[str]:
        """Return why the stage in `folder` is not complete for `inputs`, in words; empty if it is."""
        return self.unpublished(folder / MANIFEST) + problems(folder, stage, inputs, self.storage)

    def move(self, folder: Path, target: Path) -> None:
        """Move a folder within the workspace. Raises `OSError`, or `PipelineError` from a store."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self.storage.move(folder, target)

    def refresh(self) -> None:
        """Fetch the listing, manifests and pointers of the whole workspace."""
        self.storage.refresh([self.root])
        for pattern in ("datasets/*", "current/*", "comparisons/*"):
            self.storage.refresh_matching(pattern)
        self.storage.refresh_matching("runs/*/*", RUN_FOLDERS)

    def listed(self, folder: Path) -> list[Path]:
        """List a local folder, sorted by name. Raises `WorkspaceError` if this user cannot list it."""
        try:
            return [folder / name for name in LOCAL.names(folder)]
        except OSError as error:
            raise from_os_error(error, "list it") from error

    def fetch(self, folder: Path, everything: bool = False, pattern: str = "*") -> None:
        """Fetch the files of a finished stage whose names match `pattern`, as its manifest recorded them.

        With `everything`, also fetch what the manifest does not list: logs, the trainer's state. Does nothing for a
        folder without a manifest. Raises `NotAsRecorded` if a file in the store does not match the manifest.
        """
        recorded = read(folder)
        if recorded is not None:
            files = {name: about for name, about in recorded["files"].items() if fnmatch.fnmatch(name, pattern)}
            self.storage.fetch(folder, files, digests(recorded), everything)

    def publish(self, folder: Path, recorded_only: bool = False) -> None:
        """Make a finished stage visible to other hosts; with `recorded_only`, only files that match its manifest.

        Raises `WorkspaceError` if that fails, `AlreadyRunning` if a lock was lost in the meantime.
        """
        recorded = read(folder)
        if recorded is not None:
            only = digests(recorded) if recorded_only else None
            self.storage.publish(folder, recorded["files"], only)

    @contextlib.contextmanager
    def hold(
        self, lock: Path, what: str, wait: bool = False, on_wait: locks.OnWait = lambda line: None
    ) -> Iterator[int]:
        """Like `locks.hold`, against processes here and on other hosts. Yields the descriptor of the lock's file."""
        with locks.hold(lock, what, wait, on_wait) as descriptor, self.storage.hold(lock.stem, what, wait, on_wait):
            yield descriptor

    def holder(self, lock: Path) -> locks.Holder | None:
        """Return the holder of a lock, here or on another host, or None."""
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
        """Return where in the trash to move `path` now."""
        return self.trash / now().replace(":", "") / path.relative_to(self.root)

    @property
    def events(self) -> Path:
        """The event log: one JSON object per line."""
        return self.root / "events.jsonl"

    @property
    def published_events(self) -> Path:
        """With a store: the file with the number of this host's events that are published."""
        return self.work / "events-published.json"

    def dataset(self, dataset_id: str) -> Path:
        return self.root / f"datasets/{dataset_id}"

    def source_pointer(self, data: Data) -> Path:
        """The record of which data set a source holds."""
        return self.root / f"datasets/sources/{data.name}-{source_key(data)}.json"

    def former_pointers(self, data: Data) -> Iterator[Path]:
        """Yield `source_pointer` under the names of earlier versions, whose key included secrets and file://."""
        for location in (data.source, f"file://{data.source}"):
            yield self.root / f"datasets/sources/{data.name}-{_key(data, location)}.json"

    def seen_source(self, data: Data) -> Path:
        """With a store: the record of this host's own copy of a source."""
        return self.work / "sources" / self.source_pointer(data).name

    def source_listing(self, data: Data) -> Path:
        """The record of what was in a folder of images when this host read it."""
        return self.work / "sources" / self.source_pointer(data).with_suffix(".csv").name

    def current(self, config: Config) -> Path:
        """The pointer to the current run among all that trained this architecture on this data set.

        Both are identified by name, so that a changed architecture or new images compete with their predecessors.
        """
        return self.root / "current" / config.data.name / f"{config.architecture.name}.json"

    def currents(self) -> list[Path]:
        """Return the pointers to all current runs."""
        paths = (path for data in self.listed(self.root / "current") for path in self.listed(data))
        return [path for path in paths if path.suffix == ".json"]

    def run(self, dataset_id: str, run_id: str) -> Run:
        return Run(self, dataset_id, run_id)

    def all_runs(self, data: str = ".+") -> list[Run]:
        """Return all runs with a folder here, in any state. `data` is a pattern for the names of their data."""
        name = re.compile(rf"(?:{data})-[0-9a-f]{{8}}")
        datasets = [folder for folder in self.listed(self.runs) if name.fullmatch(folder.name)]
        return [Run(self, folder.name, run.name) for folder in datasets for run in self.listed(folder)]

    def comparison(self, name: str) -> Path:
        """The folder of a comparison: `index.html`, its tables as CSV, `manifest.json`."""
        return self.root / "comparisons" / name

    def comparisons(self) -> list[Path]:
        """Return the folders of all comparisons."""
        return self.listed(self.root / "comparisons")

    @property
    def locks(self) -> Path:
        return self.work / "locks"

    def lock(self, name: str) -> Path:
        return self.locks / f"{name}.lock"

    def readers_lock(self, dataset_id: str) -> Path:
        """The lock that stages share while they read a data set, and that moving it away takes exclusively."""
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
        # Join once: a comparison of 1,000 runs calls this thousands of times, and pathlib is slow.
        return self.workspace.root / f"{self.place}/{stage}"

    @property
    def generation(self) -> str:
        return self.run_id.partition("@")[2]

    def siblings(self) -> list[Run]:
        """Return the other runs of this architecture on this data set, sorted by name, in any state."""
        base = self.run_id.partition("@")[0]
        names = [path.name for path in self.workspace.listed(self.root.parent) if path.name != self.run_id]
        return [Run(self.workspace, self.dataset_id, name) for name in names if name.partition("@")[0] == base]

    @property
    def place(self) -> str:
        """The run's folder relative to the workspace."""
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
        """The training's TensorBoard files, if enabled."""
        return self.stage("train") / "tensorboard"

    def log(self, stage: str) -> Path:
        """The log of a stage's process, next to its artifacts."""
        return self.stage(stage) / f"{stage}.log"

    def lock(self, stage: str) -> Path:
        return self.workspace.lock(f"{self.dataset_id}.{self.run_id}.{stage}")

    @property
    def job_lock(self) -> Path:
        """The lock of the training process itself, which cannot inherit its parent's when it runs on another host."""
        return self.lock("train-process")


def workspace_of(pointer: Path) -> Workspace:
    """Return the workspace of a pointer `current/<data name>/<architecture name>.json`."""
    root = pointer.absolute().parents[2]
    return Workspace(root, storage_of(root))


def dataset_id(name: str, digest: str) -> str:
    return f"{name}-{digest[:8]}"


def run_id(architecture: Architecture, generation: str = "") -> str:
    """`vgg11-1a2b3c4d`, or `vgg11-1a2b3c4d@2026-W48` for a named generation."""
    return f"{architecture.name}-{fingerprint(architecture)[:8]}" + (f"@{generation}" if generation else "")


def seed_generation(seed: int) -> str:
    """Return the generation of a run that differs only in `training.seed`: `seed-3`."""
    return f"seed-{seed}"


def generation_seed(generation: str) -> int | None:
    """Return the seed in a generation's name; None for names other than `seed-N`."""
    match = re.fullmatch(r"seed-(0|[1-9]\d{0,9})", generation)
    return int(match[1]) if match and int(match[1]) < 2**31 else None


def with_generation_seed(config: Config, generation: str) -> Config:
    """Return the configuration of a generation: its seed is N for `seed-N`, else depends on `retrain.new_seed`."""
    seed = generation_seed(generation)
    if seed is None and generation and config.retrain.new_seed:
        seed = int(hashlib.sha256(f"{config.training.seed} {generation}".encode()).hexdigest()[:8], 16) % 2**31
    if seed is None or seed == config.training.seed:
        return config
    return msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, seed=seed))


def source_key(data: Data) -> str:
    """Return 8 hex digits that identify a source: by its checksum if given, else by its location without secrets."""
    return _key(data, address.identity(data.source))


def _key(data: Data, location: str) -> str:
    identity = data.sha256.lower() if data.sha256 else location
    return hashlib.sha256(f"{data.name} {identity}".encode()).hexdigest()[:8]
