"""Resolve `--model` to an exported model: a file, a run, or the current model of a workspace, here or in a store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pipeline.config import settings
from pipeline.errors import PipelineError
from pipeline.retraining import registry, served
from pipeline.storage import check_url, default_cache, storage_at, storage_of
from pipeline.text import printable
from pipeline.workspace import Run, Workspace, manifest, workspace_of

DEFAULT_MODEL = "artifacts"

#: Splits the address of a run or current model in a store into workspace, run and current model.
_WITHIN = re.compile(
    r"(.+[^/])/(?:(runs/[^/]+-[0-9a-f]{8}/[^/]+-[0-9a-f]{8}(?:@[^/]+)?)(?:/export(?:/model\.onnx)?)?"
    r"|(current/[^/]+/[^/]+?)(?:\.json|/model\.onnx)?)"
)


def resolve_model(path: Path) -> Path:
    """Return the `.onnx` file that `path` stands for.

    A file stands for itself, a run's folder for its export, a pointer file (`current/…json`) for the model that it
    names, and the folder beside the pointer for the model that services load. A workspace stands for its current model
    or, before the first promotion, its newest run. Raises `PipelineError` when there is no model, several are current,
    or the file is damaged.
    """
    if path.is_file() and path.suffix != ".json":
        return path
    if path.is_file() and path.absolute().parent.parent.name == "current":
        return _promoted(path)
    pointer = Path(f"{path.absolute()}.json")
    if pointer.parent.parent.name == "current" and (path / served.MODEL).is_file():
        if problems := served.damage(workspace_of(pointer), pointer):
            raise PipelineError(problems[0])
        return path / served.MODEL
    if not path.is_dir():
        raise PipelineError(
            f"{shown(path)}: {'not a' if path.is_file() else 'no such'} model; "
            "--model takes a run's folder, a workspace, or an .onnx file"
        )
    for folder in (path, path / "export"):
        exported = manifest.read(folder)
        if exported is not None and exported.get("stage") == "export":
            return _verified(folder, exported)
    workspace = Workspace(path)
    if workspace.currents():
        return _current(workspace)
    newest = _newest_export(workspace)
    if newest is None:
        if workspace.runs.exists():
            os.listdir(workspace.runs)  # raises OSError if this is why nothing was found
        raise PipelineError(
            f"{shown(path)}: no exported model here: run the Export task first, or choose an .onnx file with --model"
        )
    return resolve_model(newest)


def default_model() -> str:
    """Return the workspace that the tasks use by default."""
    return settings.read().get("workspace") or DEFAULT_MODEL


def local_copy(url: str) -> Path:
    """Return the local path of a workspace, run or pointer in a store; fetches what is needed to choose a model."""
    address = check_url(url, "--model")
    options = settings.read()
    cache = Path(options["cache"]) if options.get("cache") else default_cache()
    timeout = settings.seconds(options, "retry_timeout", 60.0)
    if within := _WITHIN.fullmatch(address):
        root, run, current = within.groups()
        storage = storage_at(root, cache, timeout)
        path = storage.root / (run or f"{current}.json")
        storage.refresh([path, path / "export"] if run else [path.parent])
        if run or path.is_file():  # otherwise a workspace that is itself in a folder `current`
            return path
    storage = storage_at(address, cache, timeout)
    storage.root.mkdir(parents=True, exist_ok=True)
    storage.refresh_matching("current/*")
    if not Workspace(storage.root, storage).currents():
        storage.refresh_matching("runs/*/*", ("export",))
    return storage.root


def _verified(folder: Path, exported: dict[str, Any]) -> Path:
    Workspace(folder, storage_of(folder)).fetch(folder)
    return manifest.verified(folder, exported, "model.onnx")


def _current(workspace: Workspace) -> Path:
    """Return the exported model of the only current run of a workspace. Raises `PipelineError` if there are several."""
    pointers = workspace.currents()
    if len(pointers) > 1:
        choice = ", ".join(map(shown, pointers))
        old = printable(registry.name_of(pointers[0]))
        raise PipelineError(
            f"{shown(workspace.root)}: several models are current; choose one with --model: {choice}; or retire "
            f"one: luigi --module tasks Retire --name {old} --confirm"
        )
    return _promoted(pointers[0])


def _promoted(pointer: Path) -> Path:
    """Return the exported model of the run that a pointer names, if it was made from the promoted weights."""
    entry = registry.read(pointer)
    if entry is None:
        raise PipelineError(f"{shown(pointer)}: no such file")
    folder = registry.run_at(workspace_of(pointer), entry.run).stage("export")
    storage_of(folder).refresh([folder])
    exported = manifest.read(folder)
    if exported is None:
        raise PipelineError(f"{shown(folder)}: the current model is not exported: run the Export task for this run")
    if exported["details"].get("weights_sha256") != entry.weights_sha256:
        raise PipelineError(
            f"{shown(folder)}: exported from other weights than those promoted in {shown(pointer)}: export it again, "
            "or run the promotion gate on the new weights (luigi --module tasks Retrain)"
        )
    return _verified(folder, exported)


def _newest_export(workspace: Workspace) -> Path | None:
    exports = []
    for root in sorted(workspace.runs.glob("*/*")):
        folder = Run(workspace, root.parent.name, root.name).stage("export")
        exported = manifest.read(folder)
        if exported is not None:
            exports.append((exported["created"], folder))
    return max(exports)[1] if exports else None


def shown(path: Path) -> str:
    """Return a path as users know it: in a store, its address."""
    return storage_of(path).shown(path)
