"""What is done, what would run, and why: the rule of reruns, in one place.

Reads manifests and file sizes, never big files; leaves nothing behind. Used by the tasks' `complete()`, by Status,
and by each stage before it starts. Every question answers with reasons in words; no reason means done.
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

#: Which stages' files each stage reads.
UPSTREAM = {
    "train": ("dataset",),
    "evaluate": ("dataset", "train"),
    "export": ("dataset", "train"),
    "promote": ("train", "evaluate", "export"),
    "report": ("train", "evaluate", "export"),
}

STAGES = ("dataset", *RUN_STAGES)

#: Keys of `training` that say how a training is carried out, not what comes out of it.
OPERATIONAL_KEYS = ("checkpoint_seconds", "tensorboard")


#: When (seconds since 1970) the command began that this process is, and when sources were last found unchanged here.
_command_began = math.inf
_unchanged: dict[Path, float] = {}


def begin_command() -> None:
    """From now on this process, and those that it forks, hold a source to what they first found, or made, of it.

    A folder into which images arrive while a chain runs would otherwise end that chain; they are for the next command.
    """
    global _command_began
    _command_began = time.time()


class _Change(Struct, frozen=True):
    since: str
    what: str


class _Source(Struct, frozen=True):
    """The types that the record of a source must have. With others it counts as damaged, whoever wrote it."""

    dataset: str
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    stat: dict[str, Any] | None = None
    read: float = 0.0
    change: _Change | None = None
    official: bool = False
    label: str = ""
    #: Outputs of a network whose configuration does not say. Earlier versions made ten of them, whatever the data.
    classes: Annotated[int, Meta(ge=2, le=256)] = 10


@dataclass(frozen=True)
class Chain:
    """One configuration in one workspace, in one generation."""

    workspace: Workspace
    #: The configuration as it was given.
    given: Config
    generation: str = ""

    @property
    def config(self) -> Config:
        """The configuration, with `architecture.classes` as the data set has it, once there is one."""
        if self.given.architecture.classes is not None:
            return self.given
        record = self.source_record()
        return with_classes(self.given, record["classes"] if record else None)

    @property
    def run_id(self) -> str:
        """Without its fingerprint as long as the number of classes is not known."""
        architecture = self.config.architecture
        if architecture.classes is None:
            return architecture.name + (f"@{self.generation}" if self.generation else "")
        return run_id(architecture, self.generation)

    def source_record(self) -> dict[str, Any] | None:
        """What is known of the configured source: `dataset` (its id), `digest`, `stat`, `official`."""
        data = self.given.data
        pointers = itertools.chain([self.workspace.source_pointer(data)], self.workspace.former_pointers(data))
        return self.source_in(next(filter(None, map(read_json, pointers)), None))

    def source_in(self, record: Any) -> dict[str, Any] | None:
        """What a file's JSON value says of the configured source; None when it says nothing that can be meant."""
        try:
            known = msgspec.convert(record, _Source)
        except msgspec.ValidationError:
            return None
        if known.dataset != dataset_id(self.given.data.name, known.digest):
            return None
        return {"stat": None, "read": 0.0, **record, "classes": known.classes}

    def dataset_folder(self) -> Path | None:
        record = self.source_record()
        return self.workspace.dataset(record["dataset"]) if record else None

    def run(self) -> Run | None:
        """The run's folders, or None while the data set's digest is not known yet."""
        record = self.source_record()
        return self.workspace.run(record["dataset"], self.run_id) if record else None

    def folder(self, stage: str) -> Path | None:
        """Where a stage's files are, or None while that is not known yet."""
        if stage == "dataset":
            return self.dataset_folder()
        run = self.run()
        return run.stage(stage) if run else None

    def manifest(self, stage: str) -> dict[str, Any] | None:
        folder = self.folder(stage)
        return manifest.read(folder) if folder else None

    def decision_manifest(self) -> dict[str, Any] | None:
        """The manifest of the promotion gate's decision, if there was one about the weights that are there now."""
        decision = self.manifest("promote")
        weights = manifest.digest(self.manifest("train"), "model.params")
        return decision if decision and decision["inputs"].get("model.params") == weights else None

    def complete(self, stage: str, known: Collection[str] = ()) -> bool:
        """True when `stage` and everything before it is done, but for stages that are known to be."""
        return not any(self._why(each) for each in (stage, *all_upstream(stage)) if each not in known)

    def why(self, stage: str) -> list[str]:
        """Why `stage` itself has to run, given what its inputs are now. Empty: it is done."""
        reasons = self._why(stage)
        return (self._nearest_run() or reasons) if stage == "train" and reasons == [manifest.NO_RESULT] else reasons

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
            known = self._source_states(record)
            what = sources.change(data, self.workspace.source_listing(data), known)
            return [f"{shown_source(data)} has changed" + (f": {what}" if what else "")]
        pointer = self.workspace.source_pointer(data)
        return self.workspace.unpublished(pointer) + self.problems("dataset", self.workspace.dataset(record["dataset"]))

    def source_changed(self, record: dict[str, Any]) -> bool:
        """Whether the source is not as it was when it was found to be the data set of its `source_record`."""
        pointer, here = self.workspace.source_pointer(self.given.data), self._seen_here(record)
        looked, moment = (_unchanged.get(pointer), record["read"], here.get("read")), time.time()
        # A clock that was ahead once, here or on another host, must not blind this one until then.
        if any(isinstance(one, (int, float)) and _command_began <= one <= moment for one in looked):
            return False
        present = sources.state(self.given.data)
        if present is not None and not sources.same(present, self._source_states(record)):
            return True
        _unchanged[pointer] = time.time()
        return False

    def _source_states(self, record: dict[str, Any]) -> list[Any]:
        """The states in which the source was found to be this data set. Modification times are each copy's own."""
        return [*sources.recorded(record), self._seen_here(record).get("stat")]

    def _seen_here(self, record: dict[str, Any]) -> dict[str, Any]:
        """What this host's own copy of the source was found to be, if that is this data set."""
        here = read_json(self.workspace.seen_source(self.given.data))
        return here if isinstance(here, dict) and here.get("digest") == record["digest"] else {}

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
        """How this architecture differs from the most similar finished run on the same data set."""
        run, mine = self.run(), to_dict(self.config.architecture)
        found = []
        for other in run.root.parent.glob("*") if run else ():
            trained = manifest.read(other / "train")
            if trained is not None:
                changed = differences(trained["details"].get("config", {}).get("architecture", {}), mine)
                found.append((len(changed), other.name, changed))
        if not found:
            return []
        _, name, changed = min(found)
        if not changed:
            return [f"no result yet; same architecture as run {name}"]
        shown = "; ".join(changed[:4]) + ("; …" if len(changed) > 4 else "")
        return [f"new architecture; closest run: {name} ({shown})"]

    def problems(self, stage: str, folder: Path) -> list[str]:
        """Why the manifest and the files in `folder` are not those of a finished `stage`, as its inputs are now."""
        return self.workspace.problems(folder, stage, self.inputs(stage))

    def inputs(self, stage: str) -> dict[str, str | None]:
        """The digests of everything that `stage` reads, as they are at present."""
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
    """Have at hand what other hosts did about these chains of one workspace, as `Storage.refresh` does."""
    workspace = chains[0].workspace
    storage = workspace.storage
    pointers = (workspace.current(chain.config).parent for chain in chains)
    anew = storage.refresh(itertools.chain([workspace.datasets], pointers), ("", "sources"), since)
    runs = (run.root for chain in chains if (run := chain.run()))
    anew |= storage.refresh(runs, RUN_FOLDERS, since)
    datasets = (folder for chain in chains if (folder := chain.dataset_folder()))
    return storage.refresh(datasets, since=since) or anew


@functools.cache
def all_upstream(stage: str) -> tuple[str, ...]:
    """Every stage before `stage`, those whose files it reads first."""
    direct = UPSTREAM.get(stage, ())
    return tuple(dict.fromkeys([*direct, *(each for before in direct for each in all_upstream(before))]))


def trained_epochs(train: dict[str, Any] | None) -> int:
    """Epochs that a finished training has behind it."""
    return int(train["details"].get("epochs", 0)) if train else 0


def config_changes(train: dict[str, Any] | None, config: Config) -> list[str]:
    """Keys outside `architecture` in which a finished training and the configuration differ. They do not retrain."""
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
    """The source as it may be shown and logged."""
    return "the bundled sample" if data.is_sample else address.shown(data.source)
