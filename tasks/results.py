"""Interface for other pipelines: a workspace's files as Luigi targets, and the result of a finished chain."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luigi
from luigi.format import Format, Nop

from pipeline.errors import WorkspaceError
from pipeline.storage import LOCAL
from pipeline.workspace import MANIFEST, RUN_STAGES, Workspace
from pipeline.workspace.freshness import Chain


class StoredFile(luigi.Target):
    """Read-only target for a file of a finished stage in a store. `path` is its address there."""

    def __init__(self, workspace: Workspace, file: Path, format: Format | None = None) -> None:
        self.path = workspace.shown(file)
        self._workspace, self._file, self._format = workspace, file, format

    def __str__(self) -> str:
        return self.path

    def exists(self) -> bool:
        """Whether the file exists. Always queries the store."""
        self._workspace.storage.refresh([self._file.parent], since=time.monotonic())
        return self._workspace.storage.exists(self._file)

    def open(self, mode: str = "r") -> Any:
        """Download the file, verify it against its manifest (size, SHA-256), and open it like `LocalTarget.open`.

        Raises `WorkspaceError` if it is missing or does not match.
        """
        if mode != "r":
            raise WorkspaceError(f"{self.path}: found mode {mode!r}, expected 'r': only stages write their files")
        if not self.exists():
            raise WorkspaceError(f"{self.path} does not exist")
        self._workspace.fetch(self._file.parent, pattern=self._file.name)
        return luigi.LocalTarget(str(self._file), format=self._format).open()


def target(workspace: Workspace, file: Path, format: Format | None = None) -> luigi.LocalTarget | StoredFile:
    """Target for a file of a finished stage: a `LocalTarget` in a folder, a `StoredFile` in a store."""
    if workspace.storage is LOCAL:
        return luigi.LocalTarget(str(file), format=format)
    return StoredFile(workspace, file, format)


@dataclass(frozen=True)
class Result:
    """Result of a finished chain.

    `run` is the run's folder in the workspace; `accuracy` (0 to 1) is over all `test_images`. `files` maps names such
    as `export/model.onnx` to targets; each has a `path` (in a store its address), and `open()` reads its bytes.
    """

    run: str
    generation: str
    accuracy: float
    test_images: int
    files: dict[str, luigi.LocalTarget | StoredFile]


def result_of(chain: Chain, finished: bool) -> Result:
    """Read the result from the manifests. Raises `WorkspaceError` unless the chain is finished."""
    run = chain.run()
    if run is None or not finished:
        raise WorkspaceError(f"{chain.run_id} has no finished report yet: require the task that makes it, or run it")
    manifests = {stage: chain.manifest(stage) or {} for stage in RUN_STAGES}
    files = {
        f"{stage}/{name}": target(chain.workspace, run.stage(stage) / name, Nop)
        for stage, manifest in manifests.items()
        for name in (*manifest["files"], MANIFEST)
    }
    details = manifests["evaluate"]["details"]
    return Result(run.place, chain.generation, details["accuracy"], details["images"], files)
