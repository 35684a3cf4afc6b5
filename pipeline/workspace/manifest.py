"""Manifests: what a stage made, from which inputs, by which version of its code.

A manifest is written last and atomically, so its presence means that the stage finished. `problems` says whether a
stage is still complete, from names and sizes only. `damage` re-hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pipeline import names
from pipeline.errors import WorkspaceError, from_os_error
from pipeline.files import MANIFEST, human_size, now, read_json, read_regular, sha256_file, write_json
from pipeline.storage import LOCAL, Storage

SCHEMA = 1

#: Raise a stage's number when its code makes something else from the same inputs.
STAGE_VERSIONS = {"dataset": 1, "train": 1, "evaluate": 1, "export": 1, "promote": 1, "report": 1, "compare": 1}


#: The input for the number of views over which predictions are averaged.
TTA = "evaluation.tta"

NO_RESULT = "no result yet"

#: Inputs as messages call them; others go by their own names.
_INPUTS = {
    "dataset": "the data set",
    "architecture": "the architecture",
    "model.params": "the trained weights",
    "history.csv": "the training history",
    "predictions.npz": "the predictions",
    "metrics.json": "the metrics",
    "model.onnx": "the exported model",
    "decision.json": "the promotion decision",
}


class _File(Struct, frozen=True):
    size: int
    sha256: str


class _Settings(Struct, frozen=True):
    epochs: int = 0


class _Config(Struct, frozen=True):
    architecture: dict[str, Any] = {}
    training: _Settings = _Settings()


class _Segment(Struct, frozen=True):
    started: str


class _Details(Struct, frozen=True):
    """The details that code outside the stage itself relies on, of all stages."""

    epochs: int = 0
    config: _Config = _Config()
    segments: list[_Segment] = []
    trainer: _File | None = None
    accuracy: float | None = None
    digest: str = ""
    classes: list[str] = []
    train_images: int = 0
    test_images: int = 0


class _Manifest(Struct, frozen=True):
    """Schema of a manifest. Anything that does not match counts as damaged."""

    schema: int
    stage: str
    version: int
    created: str
    files: dict[str, _File]
    inputs: dict[str, str]
    details: _Details


def write(
    folder: Path,
    stage: str,
    files: Iterable[str],
    inputs: Mapping[str, str],
    details: Mapping[str, Any],
    hashes: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Write and return the manifest of a finished stage, for `files` in `folder`. `hashes`: SHA-256 known already."""
    value = {
        "schema": SCHEMA,
        "stage": stage,
        "version": STAGE_VERSIONS[stage],
        "created": now(),
        "files": {
            name: {"size": (folder / name).stat().st_size, "sha256": hashes.get(name) or sha256_file(folder / name)}
            for name in files
        },
        "inputs": dict(inputs),
        "details": dict(details),
    }
    value["checksum"] = _checksum(value)
    write_json(folder / MANIFEST, value)
    return value


def read(folder: Path) -> dict[str, Any] | None:
    """Read the manifest in `folder`. Returns None if it is missing or invalid."""
    value: dict[str, Any] | None = read_json(folder / MANIFEST)
    try:
        parsed = msgspec.convert(value, _Manifest)
    except msgspec.ValidationError:
        return None
    return value if parsed.schema == SCHEMA and all(map(names.is_relative_path, parsed.files)) else None


def digest(manifest: Mapping[str, Any] | None, name: str) -> str | None:
    """Return the recorded SHA-256 of a file, or None."""
    return manifest["files"].get(name, {}).get("sha256") if manifest else None


def recorded_inputs(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the inputs of a manifest. Older ones call `TTA` evaluation.views; the oldest imply one view."""
    return {TTA: manifest["inputs"].get("evaluation.views", "1"), **manifest["inputs"]}


def verified(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Return the path of a stage's file after checking its SHA-256. Raises `WorkspaceError` if it does not match."""
    path = folder / name
    try:
        why = "" if sha256_file(path) == digest(manifest, name) else "damaged, its SHA-256 does not match its manifest"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    if why:
        raise WorkspaceError(f"{path}: {why}; delete {folder.name}/ and run that stage again")
    return path


def digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the recorded SHA-256 of every file, including the trainer's state, which only the training needs."""
    trainer = manifest["details"].get("trainer")
    files = {**manifest["files"], **({"trainer.npz": trainer} if trainer else {})}
    return {name: recorded["sha256"] for name, recorded in files.items()}


def problems(folder: Path, stage: str, inputs: Mapping[str, str | None], storage: Storage = LOCAL) -> list[str]:
    """Return why the stage in `folder` is not complete for `inputs`; empty if it is.

    Raises `WorkspaceError` if the manifest or a file exists but cannot be read, so that it is not made again.
    """
    manifest = read(folder)
    if manifest is None:
        return [_manifest_problem(folder)]
    recorded, current = manifest["version"], STAGE_VERSIONS[stage]
    if recorded != current:
        return [f"made by version {recorded} of this stage, which is now at version {current}"]
    return file_problems(folder, manifest, storage) + _input_problems(recorded_inputs(manifest), inputs)


def _manifest_problem(folder: Path) -> str:
    try:
        read_regular(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return "unfinished" if folder.exists() else NO_RESULT
    except OSError as error:
        error.filename = str(folder / MANIFEST)  # `read` does not set it
        raise from_os_error(error, "read it") from error
    return f"{folder.name}/{MANIFEST} is damaged"


def file_problems(folder: Path, manifest: Mapping[str, Any], storage: Storage, rehash: bool = False) -> list[str]:
    """Return which recorded files are missing or have another size; with `rehash`, also which have other content.

    Raises `WorkspaceError` for a file that cannot be accessed; with `rehash`, reports it like the others.
    """
    checks = (_file_problem(folder, name, about, storage, rehash) for name, about in manifest["files"].items())
    return list(filter(None, checks))


def damage(folder: Path, manifest: Mapping[str, Any], storage: Storage = LOCAL) -> list[str]:
    """Return what is wrong with a finished stage's files and its manifest, down to a single flipped bit."""
    lines = file_problems(folder, manifest, storage, rehash=True)
    if "checksum" in manifest and manifest["checksum"] != _checksum(manifest):
        lines.insert(0, f"{folder.name}/{MANIFEST} is damaged: it does not match its own checksum")
    return lines


def _file_problem(folder: Path, name: str, recorded: Mapping[str, Any], storage: Storage, rehash: bool) -> str:
    shown, path = f"{folder.name}/{name}", folder / name
    try:
        size = storage.size(path)
        if size != recorded["size"]:
            return f"{shown} has {human_size(size)} ({size}), its manifest says {recorded['size']}"
        if rehash and storage.sha256(path) != recorded["sha256"]:
            return f"{shown} is damaged: its SHA-256 does not match its manifest"
    except (FileNotFoundError, NotADirectoryError):
        return f"{shown} is missing"
    except OSError as error:
        if not rehash:
            raise from_os_error(error, "access it") from error
        return f"{shown} cannot be read: {error.strerror or error}"
    return ""


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything else in a manifest."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    as_read = json.loads(json.dumps(rest))  # makes every key a string, so that they sort as when read back
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _input_problems(recorded: Mapping[str, str], present: Mapping[str, str | None]) -> list[str]:
    lines = []
    for name, value in present.items():
        if name not in recorded:
            lines.append(f"new input: {_INPUTS.get(name, name)}")
        elif recorded[name] != value:
            settings = f": {recorded[name]} -> {value}" if name == TTA else ""
            lines.append(f"{_INPUTS.get(name, name)} changed{settings}")
    return lines
