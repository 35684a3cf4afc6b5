"""The model that a service loads: `current/<data name>/<architecture name>/model.onnx`, with a manifest beside it.

In a folder the last part is a link, replaced in one step, to `<architecture name>@<version>`: a folder that is never
changed and needs no run, as its model is a hard link. Without links, and in a store, it is a folder whose two files are
replaced one after the other; `model` in the manifest leads to the very version that the manifest is about.
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

#: What a service wants to know of the exported model.
_FACTS = ("classes", "input", "outputs", "normalisation", "views", "trained_on")

log = logging.getLogger("vgg")


def folder(pointer: Path) -> Path:
    """The stable path of the model that a pointer is about."""
    return pointer.with_suffix("")


def serve(workspace: Workspace, pointer: Path) -> None:
    """Make the stable path that of the current model, or remove it when there is none. The caller holds the lock.

    Raises `WorkspaceError` when the model is not exported; the path then leads where it did.
    """
    storage, stable = workspace.storage, folder(pointer)
    storage.refresh([stable.parent, stable], since=time.monotonic())
    current = registry.read(pointer)
    try:
        if current is None:
            remove(workspace, pointer)
            return
        about = msgspec.to_builtins(current.entry)
        if about.items() <= _recorded(stable).items() and _is_whole(workspace, stable):
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
    """Let services find no model at the stable path. The caller holds the lock. Raises `WorkspaceError`."""
    storage, stable = workspace.storage, folder(pointer)
    try:
        storage.refresh([stable.parent, stable], since=time.monotonic())
        names = {path.partition("/")[0] for path in storage.files(stable.parent)}
        for name in (stable.name, *(name for name in sorted(names) if name.startswith(f"{stable.name}@"))):
            if storage.exists(stable.with_name(name)):
                storage.delete(stable.with_name(name))
    except OSError as error:
        raise from_os_error(error, "take the model away from services") from error


def withdrawn(workspace: Workspace, pointer: Path, current: Pointer) -> Entry | None:
    """The model that services still load although it was rolled back: by a command that was killed."""
    workspace.storage.refresh([folder(pointer)], since=time.monotonic())
    recorded = _recorded(folder(pointer))
    if recorded.get("run") == current.run or recorded.get("run") not in current.rolled_back:
        return None
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert({key: recorded.get(key) for key in Entry.__struct_fields__}, Entry)
    return None


def try_to_serve(workspace: Workspace, pointer: Path) -> None:
    """As `serve`; what stands in its way is told, and no error."""
    try:
        serve(workspace, pointer)
    except WorkspaceError as error:
        log.warning("%s could not be updated to the current model: %s", workspace.shown(folder(pointer)), error)


def exported(workspace: Workspace, entry: Entry) -> tuple[Path, dict[str, Any]]:
    """The exported model of a run, and the manifest of its export; raises `WorkspaceError` when it is not whole."""
    stage = registry.run_at(workspace, entry.run).stage("export")
    workspace.storage.refresh([stage])
    export = manifest.read(stage)
    generation = f" --generation {entry.generation}" if entry.generation else ""
    advice = f"luigi --module tasks Export{generation} makes it"
    if export is None or export["details"].get("weights_sha256") != entry.weights_sha256:
        raise WorkspaceError(f"{entry.run} is not exported with the weights that were promoted; {advice}")
    try:
        whole = workspace.storage.sha256(stage / MODEL) == manifest.digest(export, MODEL)
    except OSError:
        whole = False
    if not whole:
        raise WorkspaceError(f"{entry.run}/export/{MODEL} is damaged; remove {entry.run}/export, and {advice}")
    return stage / MODEL, export


def damage(workspace: Workspace, pointer: Path) -> list[str]:
    """What is wrong with the files at the stable path; nothing when there is none yet."""
    stable, storage = folder(pointer), workspace.storage
    storage.refresh([stable])
    if not storage.exists(stable):
        return []
    try:
        sound = storage.sha256(stable / MODEL) == _recorded(stable)["files"][MODEL]["sha256"]
    except (KeyError, TypeError, OSError):
        sound = False
    place = stable.parent.relative_to(workspace.root) / os.path.basename(os.path.realpath(stable))
    again = "`luigi --module tasks Prune --confirm` with its configuration makes it again"
    return [] if sound else [f"{place}: damaged; remove it, then {again}"]


def outdated(pointer: Path, current: Pointer) -> str:
    """That services load another model than the current one, in words; empty when they do not."""
    recorded = _recorded(folder(pointer))
    about = msgspec.to_builtins(current.entry)
    if not recorded or about.items() <= recorded.items():
        return ""
    what = f"services load {recorded.get('run')}, but {current.run} is current"
    return f"current/{registry.name_of(pointer)}: {what}; the next Retrain makes it available"


def _is_whole(workspace: Workspace, stable: Path) -> bool:
    """Whether the model at the stable path has its recorded size; a power cut can leave an empty one."""
    with contextlib.suppress(KeyError, TypeError, OSError):
        return bool(workspace.storage.size(stable / MODEL) == _recorded(stable)["files"][MODEL]["size"])
    return False


def _recorded(stable: Path) -> dict[str, Any]:
    value = read_json(stable / MANIFEST)
    return value if isinstance(value, dict) else {}
