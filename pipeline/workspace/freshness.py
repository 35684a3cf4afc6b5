"""The rule of reruns: what is complete, what would run, and why.

Reads manifests and file sizes, never big files, and writes nothing. Used by the tasks' `complete()`, by Status, and by
each stage before it starts. Answers are lists of reasons in words; an empty list means complete.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pipeline import address
from pipeline.config import Config, Data, differences, recorded_training, to_dict, with_classes
from pipeline.files import read_json
from pipeline.workspace import RUN_FOLDERS, RUN_STAGES, Run, Workspace, dataset_id, manifest, run_id, sources

#: The stages that must be complete before each stage.
UPSTREAM = {
    "train": ("dataset",),
    "evaluate": ("dataset", "train"),
    "export": ("dataset", "train"),
    "promote": ("train", "evaluate", "export"),
    "report": ("train", "evaluate", "export"),
}

STAGES = ("dataset", *RUN_STAGES)

#: Keys of `training` that do not affect the result.
OPERATIONAL_KEYS = ("checkpoint_seconds", "tensorboard")


#: When this command began and when each source was last found unchanged here (seconds since 1970).
_command_began = math.inf
_unchanged: dict[Path, float] = {}


def begin_command() -> None:
    """From now on, do not check a source again once it has been read, or found unchanged here. Forks inherit this.

    Otherwise images that arrive in a folder while a chain runs would fail that chain; they are for the next command.
    """
    global _command_began
    _command_began = time.time()


class _Change(Struct, frozen=True):
    since: str
    what: str


class _Source(Struct, frozen=True):
    """Schema of a source record. Anything that does not match counts as damaged."""

    dataset: str
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    stat: dict[str, Any] | None = None
    read: float = 0.0
    change: _Change | None = None
    official: bool = False
    label: str = ""
    #: Outputs of a network that does not configure them. Earlier versions always made ten.
    classes: Annotated[int, Meta(ge=2, le=256)] = 10


@dataclass(frozen=True)
class Chain:
    """One configuration in one workspace, in one generation."""

    workspace: Workspace
    #: The configuration as the user wrote it.
    given: Config
    generation: str = ""

    @property
    def config(self) -> Config:
        """The configuration, with `architecture.classes` taken from the data set once there is one."""
        if self.given.architecture.classes is not None:
            return self.given
        record = self.source_record()
        return with_classes(self.given, record["classes"] if record else None)

    @property
    def run_id(self) -> str:
        """The name of the run; without its fingerprint until the number of classes is known."""
        architecture = self.config.architecture
        if architecture.classes is None:
            return architecture.name + (f"@{self.generation}" if self.generation else "")
        return run_id(architecture, self.generation)

    def source_record(self) -> dict[str, Any] | None:
        """Return what is known about the configured source: `dataset` (its id), `digest`, `stat`, `official`."""
        data = self.given.data
        pointers = itertools.chain([self.workspace.source_pointer(data)], self.workspace.former_pointers(data))
        return self.parse_source_record(next(filter(None, map(read_json, pointers)), None))

    def parse_source_record(self, value: Any) -> dict[str, Any] | None:
        """Validate a source record. Returns None if it is damaged or is about another data set."""
        try:
            record = msgspec.convert(value, _Source)
        except msgspec.ValidationError:
            return None
        if record.dataset != dataset_id(self.given.data.name, record.digest):
            return None
        return {"stat": None, "read": 0.0, **value, "classes": record.classes}

    def dataset_folder(self) -> Path | None:
        record = self.source_record()
        return self.workspace.dataset(record["dataset"]) if record else None

    def run(self) -> Run | None:
        """Return the run, or None until the data set's digest is known."""
        record = self.source_record()
        return self.workspace.run(record["dataset"], self.run_id) if record else None

    def folder(self, stage: str) -> Path | None:
        """Return the folder of a stage, or None until the data set's digest is known."""
        if stage == "dataset":
            return self.dataset_folder()
        run = self.run()
        return run.stage(stage) if run else None

    def manifest(self, stage: str) -> dict[str, Any] | None:
        folder = self.folder(stage)
        return manifest.read(folder) if folder else None

    def decision_manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the promotion gate's decision, if it is about the present weights."""
        decision = self.manifest("promote")
        weights = manifest.digest(self.manifest("train"), "model.params")
        return decision if decision and decision["inputs"].get("model.params") == weights else None

    def complete(self, stage: str, known: Collection[str] = ()) -> bool:
        """Whether `stage` and everything before it is complete. Skips the check of stages `known` to be."""
        return not any(self._why(name) for name in (stage, *all_upstream(stage)) if name not in known)

    def why(self, stage: str) -> list[str]:
        """Return why `stage` itself must run, given its present inputs; empty if it is complete."""
        reasons = self._why(stage)
        if stage == "train" and reasons == [manifest.NO_RESULT]:
            return self._nearest_run() or reasons
        return reasons

    def _why(self, stage: str) -> list[str]:
        if stage == "dataset":
            return self._why_dataset()
        folder = self.folder(stage)
        if folder is None:
            return ["no data set yet"]
        if stage == "train":
            return self._why_train(folder)
        missing = [name for name, value in self.inputs(stage).items() if value is None]
        if missing:
            return [f"missing input: {', '.join(missing)}"]
        return self.problems(stage, folder)

    def _why_dataset(self) -> list[str]:
        data, record = self.given.data, self.source_record()
        if record is None:
            return [f"no data set from {shown_source(data)} yet"]
        if self.source_changed(record):
            change = sources.change(data, self.workspace.source_listing(data), self._source_states(record))
            return [f"{shown_source(data)} has changed" + (f": {change}" if change else "")]
        pointer = self.workspace.source_pointer(data)
        return self.workspace.unpublished(pointer) + self.problems("dataset", self.workspace.dataset(record["dataset"]))

    def source_changed(self, record: dict[str, Any]) -> bool:
        """Whether the source has changed since its `source_record` was written."""
        pointer, local = self.workspace.source_pointer(self.given.data), self._local_record(record)
        checked, moment = (_unchanged.get(pointer), record["read"], local.get("read")), time.time()
        # Times in the future are ignored: a clock that was once ahead, on any host, must not suppress checks.
        if any(isinstance(when, (int, float)) and _command_began <= when <= moment for when in checked):
            return False
        present = sources.state(self.given.data)
        if present is not None and not sources.same(present, self._source_states(record)):
            return True
        _unchanged[pointer] = time.time()
        return False

    def _source_states(self, record: dict[str, Any]) -> list[Any]:
        """Return all states in which the source is this data set. Each copy has its own modification times."""
        return [*sources.recorded(record), self._local_record(record).get("stat")]

    def _local_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record of this host's own copy of the source, if it is this data set."""
        local = read_json(self.workspace.seen_source(self.given.data))
        return local if isinstance(local, dict) and local.get("digest") == record["digest"] else {}

    def _why_train(self, folder: Path) -> list[str]:
        reasons = self.problems("train", folder)
        if reasons:
            return reasons
        trained = trained_epochs(manifest.read(folder))
        wanted = self.config.training.epochs
        if trained < wanted:
            return [f"training.epochs raised: {trained} -> {wanted}, resuming from {folder.name}/model.params"]
        return []

    def _nearest_run(self) -> list[str]:
        """Describe how this architecture differs from the most similar finished run on the same data set."""
        run, mine = self.run(), to_dict(self.config.architecture)
        candidates = []
        for other in run.root.parent.glob("*") if run else ():
            trained = manifest.read(other / "train")
            if trained is not None:
                changed = differences(trained["details"].get("config", {}).get("architecture", {}), mine)
                candidates.append((len(changed), other.name, changed))
        if not candidates:
            return []
        _, name, changed = min(candidates)
        if not changed:
            return [f"no result yet; same architecture as run {name}"]
        shown = "; ".join(changed[:4]) + ("; …" if len(changed) > 4 else "")
        return [f"new architecture; closest run: {name} ({shown})"]

    def problems(self, stage: str, folder: Path) -> list[str]:
        """Return why `folder` does not hold a finished `stage` for its present inputs; empty if it does."""
        return self.workspace.problems(folder, stage, self.inputs(stage))

    def inputs(self, stage: str) -> dict[str, str | None]:
        """Return the present digests of everything that `stage` reads; None for what is missing."""
        if stage == "dataset":
            return {}
        dataset = self.source_record()
        digest = dataset["digest"] if dataset else None
        if stage == "train":
            return {"dataset": digest, "architecture": self.config.fingerprint}
        train = self.manifest("train")
        weights = {"model.params": manifest.digest(train, "model.params")}
        if stage in ("evaluate", "export"):
            return {"dataset": digest, **weights, manifest.TTA: str(self.config.evaluation.tta)}
        evaluate, export = self.manifest("evaluate"), self.manifest("export")
        measured = {
            **weights,
            "predictions.npz": manifest.digest(evaluate, "predictions.npz"),
            "model.onnx": manifest.digest(export, "model.onnx"),
        }
        if stage == "promote":
            return measured
        decision = self.decision_manifest()
        return {
            **measured,
            "history.csv": manifest.digest(train, "history.csv"),
            "metrics.json": manifest.digest(evaluate, "metrics.json"),
            **({"decision.json": manifest.digest(decision, "decision.json")} if decision else {}),
        }


def refresh(chains: Sequence[Chain], since: float = 0.0) -> bool:
    """Fetch what other hosts have published about these chains of one workspace. See `Storage.refresh`."""
    workspace = chains[0].workspace
    storage = workspace.storage
    pointers = (workspace.current(chain.config).parent for chain in chains)
    renewed = storage.refresh(itertools.chain([workspace.datasets], pointers), ("", "sources"), since)
    runs = (run.root for chain in chains if (run := chain.run()))
    renewed |= storage.refresh(runs, RUN_FOLDERS, since)
    datasets = (folder for chain in chains if (folder := chain.dataset_folder()))
    return storage.refresh(datasets, since=since) or renewed


@functools.cache
def all_upstream(stage: str) -> tuple[str, ...]:
    """Return every stage that must be complete before `stage`, the direct ones first."""
    direct = UPSTREAM.get(stage, ())
    return tuple(dict.fromkeys([*direct, *(name for before in direct for name in all_upstream(before))]))


def trained_epochs(train: dict[str, Any] | None) -> int:
    """Return the number of epochs that a finished training has completed."""
    return int(train["details"].get("epochs", 0)) if train else 0


def config_changes(train: dict[str, Any] | None, config: Config) -> list[str]:
    """Describe how a finished training differs from the configuration outside `architecture`, which never retrains."""
    if train is None:
        return []
    recorded, now = train["details"].get("config", {}), to_dict(config)
    then = {
        "training": recorded_training(recorded.get("training", {})),
        "device": recorded.get("device"),
        "distributed": recorded.get("distributed", {"workers": 1}),
    }
    lines = []
    for change in differences(then, {part: now[part] for part in then}):
        key, _, values = change.partition(": ")
        old, _, new = values.partition(" -> ")
        resumes = key == "training.epochs" and config.training.epochs > trained_epochs(train)
        if not resumes and key.rpartition(".")[2] not in OPERATIONAL_KEYS:
            lines.append(f"{key}: trained with {old}, config now says {new}")
    return lines


def shown_source(data: Data) -> str:
    """Return the source as shown to users, without secrets."""
    return "the bundled sample" if data.is_sample else address.shown(data.source)
