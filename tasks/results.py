"""What other pipelines read: the files of a workspace as Luigi's targets, and what a finished chain came to."""

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
    """A file of a finished stage in a store, for reading. `path` is its address there."""

    def __init__(self, workspace: Workspace, file: Path, format: Format | None = None) -> None:
        self.path = workspace.shown(file)
        self._workspace, self._file, self._format = workspace, file, format

    def __str__(self) -> str:
        return self.path

    def exists(self) -> bool:
        """Whether it is in the store now."""
        self._workspace.storage.refresh([self._file.parent], since=time.monotonic())
        return self._workspace.storage.exists(self._file)

    def open(self, mode: str = "r") -> Any:
        """As `LocalTarget.open`, once a copy is here that has the size and the digest that its manifest recorded.

        Raises `WorkspaceError` when it is not there, or not what was recorded.
        """
        if mode != "r":
            raise WorkspaceError(f"{self.path}: found mode {mode!r}, expected 'r': stages alone write their files")
        if not self.exists():
            raise WorkspaceError(f"{self.path} is not there")
        self._workspace.fetch(self._file.parent, pattern=self._file.name)
        return luigi.LocalTarget(str(self._file), format=self._format).open()


def target(workspace: Workspace, file: Path, format: Format | None = None) -> luigi.LocalTarget | StoredFile:
    """A file of a finished stage: in a folder a `LocalTarget`, in a store a `StoredFile`."""
    if workspace.storage is LOCAL:
        return luigi.LocalTarget(str(file), format=format)
    return StoredFile(workspace, file, format)


@dataclass(frozen=True)
class Result:
    """What a finished chain came to.

    `run` is the run's folder in the workspace, `accuracy` that on all `test_images` (0 to 1). `files` has all files of
    its stages by names such as `export/model.onnx`; each has a `path` (in a store its address), and `open()` gives
    its bytes.
    """

    run: str
    generation: str
    accuracy: float
    test_images: int
    files: dict[str, luigi.LocalTarget | StoredFile]


def result_of(chain: Chain, finished: bool) -> Result:
    """Read the manifests of a finished chain; raises `WorkspaceError` when it is not finished."""
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
