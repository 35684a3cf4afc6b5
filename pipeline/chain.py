"""What is done, what would run, and why: the rule of reruns, in one place.

Reads manifests and file sizes, never big files; leaves nothing behind. Used by the tasks' `complete()`, by Status,
and by each stage before it starts. Every question answers with reasons in words; no reason means done.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.config import Config, Data, differences, recorded_training, to_dict
from pipeline.files import read_json
from pipeline.workspace import MANIFEST, RUN_STAGES, Run, Workspace, dataset_id, run_id

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


@dataclass(frozen=True)
class Chain:
    """One configuration in one workspace, in one generation."""

    workspace: Workspace
    config: Config
    generation: str = ""

    @property
    def run_id(self) -> str:
        return run_id(self.config.architecture, self.generation)

    def source_record(self) -> dict[str, Any] | None:
        """What is known of the configured source: `dataset` (its id), `digest`, `stat`, `official`."""
        record = read_json(self.workspace.source_pointer(self.config.data))
        if not isinstance(record, dict) or not isinstance(record.get("digest"), str):
            return None
        known = dataset_id(self.config.data.name, record["digest"])
        return record if record.get("dataset") == known else None

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
            return {"dataset": digest, **weights, manifest.VIEWS: str(self.config.evaluation.views)}
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

    def decision_manifest(self) -> dict[str, Any] | None:
        """The manifest of the promotion gate's decision, if there was one about the weights that are there now."""
        decision = self.manifest("promote")
        weights = manifest.digest(self.manifest("train"), "model.params")
        return decision if decision and decision["inputs"].get("model.params") == weights else None

    def why(self, stage: str) -> list[str]:
        """Why `stage` itself has to run, given what its inputs are now. Empty: it is done."""
        reasons = self._why(stage)
        return reasons + self._nearest_run() if stage == "train" and reasons == ["not made yet"] else reasons

    def _why(self, stage: str) -> list[str]:
        if stage == "dataset":
            return self._why_dataset()
        folder = self.folder(stage)
        if folder is None:
            return ["the data set is not there yet"]
        if stage == "train":
            return self._why_train(folder)
        missing = [name for name, value in self.inputs(stage).items() if value is None]
        if missing:
            return [f"its input {', '.join(missing)} is not there yet"]
        return self.problems(stage, folder)

    def problems(self, stage: str, folder: Path) -> list[str]:
        """Why the manifest and the files in `folder` are not those of a finished `stage`, as its inputs are now."""
        here_only = self.workspace.unpublished(folder / MANIFEST)
        return here_only + manifest.problems(folder, stage, self.inputs(stage), self.workspace.size)

    def complete(self, stage: str, known: Collection[str] = ()) -> bool:
        """True when `stage` and everything before it is done, but for stages that are known to be."""
        return not any(self._why(each) for each in (stage, *all_upstream(stage)) if each not in known)

    def _why_dataset(self) -> list[str]:
        data, record = self.config.data, self.source_record()
        if record is None:
            return [f"nothing was made from {shown_source(data)} yet"]
        present = source_stat(data)
        if present is not None and record.get("stat") != present and self.seen_here() != (record["digest"], present):
            return [f"{shown_source(data)} changed since the data set was made from it"]
        pointer = self.workspace.source_pointer(data)
        return self.workspace.unpublished(pointer) + self.problems("dataset", self.workspace.dataset(record["dataset"]))

    def seen_here(self) -> tuple[str, Any] | None:
        """For a workspace in a store: the digest that the source on this host, in that state, was found to have.

        Modification times are each host's own.
        """
        value = read_json(self.workspace.seen_source(self.config.data)) if self.workspace.mirror else None
        return (value.get("digest", ""), value.get("stat")) if isinstance(value, dict) else None

    def _why_train(self, folder: Path) -> list[str]:
        reasons = self.problems("train", folder)
        if reasons:
            return reasons
        trained = trained_epochs(manifest.read(folder))
        wanted = self.config.training.epochs
        if trained < wanted:
            return [f"training.epochs raised: {trained} -> {wanted}, continues from {folder.name}/model.params"]
        return []

    def _nearest_run(self) -> list[str]:
        """How this architecture differs from the most similar finished run on the same data set."""
        run = self.run()
        if run is None or not run.root.parent.is_dir():
            return []
        mine = to_dict(self.config.architecture)
        best: tuple[int, str, list[str]] | None = None
        for other in sorted(run.root.parent.iterdir()):
            trained = manifest.read(other / "train")
            if other.name == run.run_id or trained is None:
                continue
            changed = differences(trained["details"].get("config", {}).get("architecture", {}), mine)
            if best is None or len(changed) < best[0]:
                best = (len(changed), other.name, changed)
        if best is None:
            return []
        _, name, changed = best
        if not changed:
            return [f"another generation of the same architecture is there: {name}"]
        shown = "; ".join(changed[:4]) + ("; …" if len(changed) > 4 else "")
        return [f"architecture changed from run {name}: {shown}"]


@functools.cache
def all_upstream(stage: str) -> tuple[str, ...]:
    """Every stage before `stage`, those whose files it reads first."""
    direct = UPSTREAM.get(stage, ())
    return tuple(dict.fromkeys([*direct, *(each for before in direct for each in all_upstream(before))]))


def trained_epochs(train: dict[str, Any] | None) -> int:
    """Epochs that a finished training has behind it."""
    return int(train["details"].get("epochs", 0)) if train else 0


def drift(train: dict[str, Any] | None, config: Config) -> list[str]:
    """Keys outside `architecture` in which a finished training and the configuration differ.

    Each is `training.learning_rate: trained with 0.1, config now says 0.05`. They do not retrain.
    """
    if train is None:
        return []
    recorded, now = train["details"].get("config", {}), to_dict(config)
    then = {"training": recorded_training(recorded.get("training", {})), "device": recorded.get("device")}
    lines = []
    for part in ("training", "device"):
        for change in differences({part: then.get(part)}, {part: now[part]}):
            key, _, values = change.partition(": ")
            if key.rpartition(".")[2] in OPERATIONAL_KEYS:
                continue
            old, _, new = values.partition(" -> ")
            if key == "training.epochs" and int(new) > int(old):
                continue  # not drift: the training goes on
            lines.append(f"{key}: trained with {old}, config now says {new}")
    return lines


def source_stat(data: Data) -> dict[str, Any] | None:
    """Size and modification time of a local source; None for a URL, the sample, or a source that is gone.

    A source that was removed after its data set was made is no reason to make it again.
    """
    if data.is_sample or "://" in data.source:
        return None
    path = Path(data.source)
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return {file.relative_to(path).as_posix(): _stat(file) for file in files}
        return {path.name: _stat(path)}
    except OSError:
        return None


def shown_source(data: Data) -> str:
    """The source as it may be shown and logged: without a user name or password in a URL."""
    if data.is_sample:
        return "the bundled sample"
    if "://" not in data.source:
        return data.source
    scheme, _, rest = data.source.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _stat(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
