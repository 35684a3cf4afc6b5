"""The model that services load: `current/<data name>/<architecture name>/model.onnx`, with a manifest beside it.

On a file system with links, that folder is a symbolic link, replaced atomically, to `<architecture name>@<version>`.
A version never changes, and outlives its run because its model is a hard link. Without links, and in a store, it is a
plain folder whose two files are replaced one after the other; `model` in the manifest is the path of the version that
the manifest describes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import WorkspaceError, from_os_error
from pipeline.files import MANIFEST, read_json
from pipeline.retraining import registry
from pipeline.retraining.registry import Entry, Pointer
from pipeline.workspace import Workspace, manifest

MODEL = "model.onnx"

#: Facts about the exported model that a service needs.
_FACTS = ("classes", "input", "outputs", "normalisation", "views", "trained_on")

log = logging.getLogger("vgg")


def folder(pointer: Path) -> Path:
    """Return the stable path of a pointer's model."""
    return pointer.with_suffix("")


def serve(workspace: Workspace, pointer: Path) -> None:
    """Point the stable path at the current model. The caller holds the lock.

    Without a pointer the path stays as it was: a lost pointer must not take the model from services, only `Retire` may.
    Raises `WorkspaceError` if the model is not exported, and then leaves the path as it was.
    """
    storage, stable = workspace.storage, folder(pointer)
    storage.refresh([stable.parent, stable], since=time.monotonic())
    current = registry.read(pointer)
    try:
        if current is None:
            return
        about = msgspec.to_builtins(current.entry)
        if about.items() <= _recorded(stable).items() and _has_recorded_size(workspace, stable):
            return
        model, export = exported(workspace, current.entry)
        value = {
            "schema": 1,
            "name": registry.name_of(pointer),
            **about,
            **{key: export["details"].get(key) for key in _FACTS},
            "files": {MODEL: export["files"][MODEL]},
        }
        version = f"{stable.name}@{hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]}"
        value["model"] = f"../{version}/{MODEL}"
        storage.serve(model, json.dumps(value, indent=2).encode() + b"\n", stable.with_name(version), stable)
    except OSError as error:
        raise from_os_error(error, "make the current model available to services") from error


def remove(workspace: Workspace, pointer: Path) -> None:
    """Remove the stable path and all versions. The caller holds the lock. Raises `WorkspaceError` if that fails."""
    storage, stable = workspace.storage, folder(pointer)
    try:
        storage.refresh([stable.parent, stable], since=time.monotonic())
        names = {path.partition("/")[0] for path in storage.files(stable.parent)}
        for name in (stable.name, *(name for name in sorted(names) if name.startswith(f"{stable.name}@"))):
            if storage.exists(stable.with_name(name)):
                storage.delete(stable.with_name(name))
    except OSError as error:
        raise from_os_error(error, "withdraw the model from services") from error


def still_served(workspace: Workspace, pointer: Path, current: Pointer) -> Entry | None:
    """Return the rolled-back model that services still load, which happens if the rollback was killed; else None."""
    workspace.storage.refresh([folder(pointer)], since=time.monotonic())
    recorded = _recorded(folder(pointer))
    if recorded.get("run") == current.run or recorded.get("run") not in current.rolled_back:
        return None
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert({key: recorded.get(key) for key in Entry.__struct_fields__}, Entry)
    return None


def try_to_serve(workspace: Workspace, pointer: Path) -> None:
    """Like `serve`, but log a failure instead of raising."""
    try:
        serve(workspace, pointer)
    except WorkspaceError as error:
        log.warning("%s could not be updated to the current model: %s", workspace.shown(folder(pointer)), error)


def exported(workspace: Workspace, entry: Entry) -> tuple[Path, dict[str, Any]]:
    """Return a run's exported model and the manifest of its export. Raises `WorkspaceError` if it is not intact."""
    stage = registry.run_at(workspace, entry.run).stage("export")
    workspace.storage.refresh([stage])
    export = manifest.read(stage)
    generation = f" --generation {entry.generation}" if entry.generation else ""
    advice = f"run luigi --module tasks Export{generation}"
    if export is None or export["details"].get("weights_sha256") != entry.weights_sha256:
        raise WorkspaceError(f"{entry.run} is not exported with the weights that were promoted; {advice}")
    try:
        intact = workspace.storage.sha256(stage / MODEL) == manifest.digest(export, MODEL)
    except OSError:
        intact = False
    if not intact:
        raise WorkspaceError(f"{entry.run}/export/{MODEL} is damaged; remove {entry.run}/export, then {advice}")
    return stage / MODEL, export


def damage(workspace: Workspace, pointer: Path) -> list[str]:
    """Return what is wrong with the files at the stable path; empty if nothing is served yet."""
    stable, storage = folder(pointer), workspace.storage
    storage.refresh([stable])
    if not storage.exists(stable):
        return []
    try:
        intact = storage.sha256(stable / MODEL) == _recorded(stable)["files"][MODEL]["sha256"]
    except (KeyError, TypeError, OSError):
        intact = False
    place = stable.parent.relative_to(workspace.root) / os.path.basename(os.path.realpath(stable))
    advice = "remove it, then run `luigi --module tasks Prune --confirm` with its configuration to restore it"
    return [] if intact else [f"{place}: damaged; {advice}"]


def outdated(pointer: Path, current: Pointer) -> str:
    """Return a line if services load another model than the current one, else an empty string."""
    recorded = _recorded(folder(pointer))
    about = msgspec.to_builtins(current.entry)
    if not recorded or about.items() <= recorded.items():
        return ""
    mismatch = f"services load {recorded.get('run')}, but {current.run} is current"
    return f"current/{registry.name_of(pointer)}: {mismatch}; the next Retrain makes it available"


def _has_recorded_size(workspace: Workspace, stable: Path) -> bool:
    """Whether the model at the stable path has its recorded size: a power failure can leave an empty file."""
    with contextlib.suppress(KeyError, TypeError, OSError):
        return bool(workspace.storage.size(stable / MODEL) == _recorded(stable)["files"][MODEL]["size"])
    return False


def _recorded(stable: Path) -> dict[str, Any]:
    value = read_json(stable / MANIFEST)
    return value if isinstance(value, dict) else {}
