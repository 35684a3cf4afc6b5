"""Which exported model `--model` means: a file, a run, the current model of a workspace, here or in a store."""

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

#: A run or a current model in the address of a store; what precedes it is the workspace.
_WITHIN = re.compile(
    r"(.+[^/])/(?:(runs/[^/]+-[0-9a-f]{8}/[^/]+-[0-9a-f]{8}(?:@[^/]+)?)(?:/export(?:/model\.onnx)?)?"
    r"|(current/[^/]+/[^/]+?)(?:\.json|/model\.onnx)?)"
)


def resolve_model(path: Path) -> Path:
    """The `.onnx` file that `path` means.

    A file means itself, a run's folder its export, a pointer file (`current/…json`) the model that it names, the folder
    beside it the model that services load. A workspace means its current model or, before the first promotion, its
    newest run. Raises `PipelineError` when there is no model, several are current, or the file is damaged.
    """
    if path.is_file():
        return _promoted(path) if path.suffix == ".json" else path
    pointer = Path(f"{path.absolute()}.json")
    if pointer.parent.parent.name == "current" and (path / served.MODEL).is_file():
        for problem in served.damage(workspace_of(pointer), pointer):
            raise PipelineError(problem)
        return path / served.MODEL
    if not path.is_dir():
        raise PipelineError(
            f"{shown(path)}: no such model; --model takes a run's folder, a workspace, or an .onnx file"
        )
    for folder in (path, path / "export"):
        exported = manifest.read(folder)
        if exported is not None and exported.get("stage") == "export":
            return _checked(folder, exported)
    workspace = Workspace(path)
    if workspace.currents():
        return _current(workspace)
    newest = _newest_export(workspace)
    if newest is None:
        if workspace.runs.exists():
            os.listdir(workspace.runs)  # raises what made it unreadable
        raise PipelineError(
            f"{shown(path)}: no exported model here: run the Export task first, or choose an .onnx file with --model"
        )
    return resolve_model(newest)


def default_model() -> str:
    """The workspace that the tasks use by default."""
    return settings.read().get("workspace") or DEFAULT_MODEL


def in_store(url: str) -> Path:
    """The local path of a workspace in a store, or of a run or pointer in it; fetches what it takes to choose a model.

    A workspace may itself be below a folder `runs` or `current`: a run is known by its name, a pointer is looked for.
    """
    address = check_url(url)
    said = settings.read()
    cache = Path(said["cache"]) if said.get("cache") else default_cache()
    timeout = settings.seconds(said, "retry_timeout", 60.0)
    if within := _WITHIN.fullmatch(address):
        root, run, current = within.groups()
        storage = storage_at(root, cache, timeout)
        path = storage.root / (run or f"{current}.json")
        storage.refresh([path, path / "export"] if run else [path.parent])
        if run or path.is_file():
            return path
    storage = storage_at(address, cache, timeout)
    storage.root.mkdir(parents=True, exist_ok=True)
    storage.refresh_matching("current/*")
    if not Workspace(storage.root, storage).currents():
        storage.refresh_matching("runs/*/*", ("export",))
    return storage.root


def _checked(folder: Path, exported: dict[str, Any]) -> Path:
    Workspace(folder, storage_of(folder)).fetch(folder)
    return manifest.verified(folder, exported, "model.onnx")


def _current(workspace: Workspace) -> Path:
    """The exported model of the one run that is current in a workspace."""
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
    """The exported model of the run that a pointer file names, made from the weights that were promoted."""
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
    return _checked(folder, exported)


def _newest_export(workspace: Workspace) -> Path | None:
    """The newest export folder of this workspace."""
    found = []
    for root in sorted(workspace.runs.glob("*/*")):
        folder = Run(workspace, root.parent.name, root.name).stage("export")
        exported = manifest.read(folder)
        if exported is not None:
            found.append((exported["created"], folder))
    return max(found)[1] if found else None


def shown(path: Path) -> str:
    """A path as users know it: in a store, its address there."""
    return storage_of(path).shown(path)
