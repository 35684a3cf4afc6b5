"""The registry of current models: a small file for each data set and architecture name, replaced atomically.

`current/<data name>/<architecture name>.json` names the current run, the digest of its weights, its accuracy and since
when, and the runs that were current before it, for a roll back. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from pipeline import names
from pipeline.errors import PipelineError, WorkspaceError, from_os_error
from pipeline.files import now, read_regular, write_atomically, write_json
from pipeline.storage import locks
from pipeline.workspace import Run, Workspace, manifest
from pipeline.workspace.freshness import Chain

#: How many former current runs the pointer remembers.
REMEMBERED = 50

log = logging.getLogger("vgg")


class Entry(Struct, frozen=True, kw_only=True):
    """One run that is or was current. `run` is its folder, as seen from the workspace."""

    run: str
    generation: str
    weights_sha256: str
    architecture: str
    accuracy: float
    since: str

    def __post_init__(self) -> None:
        """Raise `ValueError` for a text that this program does not write."""
        _check_run(self.run)
        for text in (self.generation, self.weights_sha256, self.architecture, self.since):
            if text and not names.is_name(text):
                raise ValueError(f"{self.run}: found {text!a}")


class Pointer(Entry, frozen=True, kw_only=True):
    """The content of the file: the current run, those before it (newest first), and those that were rolled back."""

    before: list[Entry] = []
    rolled_back: list[str] = []

    def __post_init__(self) -> None:
        Entry.__post_init__(self)
        for run in self.rolled_back:
            _check_run(run)

    @property
    def entry(self) -> Entry:
        return Entry(**{name: getattr(self, name) for name in Entry.__struct_fields__})


def _check_run(run: str) -> None:
    parts = run.split("/")
    if len(parts) != 3 or parts[0] != "runs" or not names.is_relative_path(run):
        raise ValueError(f"run: found {run!a}, expected runs/DATASET/RUN")


def read(path: Path) -> Pointer | None:
    """The pointer in `path`, or None when nothing was promoted yet. Raises `WorkspaceError` when it is damaged."""
    try:
        return msgspec.json.decode(read_regular(path), type=Pointer)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, "read which run is current") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkspaceError(
            f"{path}: damaged ({error}); restore it, or delete it, and the next Retrain chooses anew"
        ) from error


def ever_current(path: Path) -> set[str]:
    """The runs that are or were current, by the pointer in `path`; none when it is missing or damaged."""
    try:
        pointer = read(path)
    except WorkspaceError:
        return set()
    return {pointer.run, *(entry.run for entry in pointer.before), *pointer.rolled_back} if pointer else set()


def pointers(workspace: Workspace) -> list[Path]:
    """The pointers to all current models of the workspace."""
    workspace.storage.refresh_matching("current/*")
    return workspace.currents()


def run_at(workspace: Workspace, place: str) -> Run:
    """The folders of the run at `runs/<dataset>/<run>`, as an entry names it."""
    return workspace.run(*place.split("/")[1:])


def problems(workspace: Workspace, entry: Entry) -> list[str]:
    """Why the run of `entry` is not what was promoted any more; empty when it is."""
    run = run_at(workspace, entry.run)
    workspace.storage.refresh([run.root], ("train", "evaluate"))
    folder = run.stage("train")
    train = manifest.read(folder)
    if train is None:
        return [f"{entry.run}/train is gone or not finished"]
    if manifest.digest(train, "model.params") != entry.weights_sha256:
        return [f"{entry.run}/train no longer has the weights that were promoted"]
    try:
        return [f"{entry.run}/{problem}" for problem in manifest.file_problems(folder, train, workspace.storage)]
    except WorkspaceError as error:  # it cannot be looked at, so it cannot be used now
        return [str(error)]


def set_current(path: Path, entry: Entry) -> Pointer:
    """Make `entry` current; the former one goes on top of `before`. The caller holds the lock."""
    old = read(path)
    before, rolled_back = ([old.entry, *old.before], old.rolled_back) if old else ([], [])
    return _write(path, entry, before, rolled_back)


def withdraw(path: Path, entry: Entry) -> Pointer:
    """Make `entry` current; the former one counts as rolled back: the gate does not promote it again. The caller
    holds the lock.
    """
    old = read(path)
    assert old is not None
    return _write(path, entry, old.before, [*old.rolled_back, old.run])


def entry_of(run: Run, generation: str) -> Entry | None:
    """The entry for a run that becomes current now; None when its weights are not evaluated."""
    train, evaluate = manifest.read(run.stage("train")), manifest.read(run.stage("evaluate"))
    weights = manifest.digest(train, "model.params")
    accuracy = evaluate["details"].get("accuracy") if evaluate else None
    if not (train and evaluate and weights) or accuracy is None or evaluate["inputs"].get("model.params") != weights:
        return None
    return Entry(
        run=run.place,
        generation=generation,
        weights_sha256=weights,
        architecture=train["inputs"].get("architecture", ""),
        accuracy=accuracy,
        since=now(),
    )


def name_of(path: Path) -> str:
    """The name of a pointer on the command line: `<data name>/<architecture name>`."""
    return f"{path.parent.name}/{path.stem}"


def lock_name(path: Path) -> str:
    """The name of the lock of a pointer."""
    return f"current.{path.parent.name}.{path.stem}"


@contextlib.contextmanager
def held(workspace: Workspace, path: Path, tell: locks.OnWait = log.info) -> Iterator[None]:
    """Hold the lock of the pointer `path` while it is read and replaced; of one in a store, publish it then.

    After an error a former pointer is there again. `tell` hears once for whom this waits.
    """
    name, what, once = lock_name(path), "the choice of the current model", functools.cache(tell)
    # The store's lock first: the gate's command holds it while its process takes the one here.
    with workspace.storage.hold(name, what, True, once), locks.hold(workspace.lock(name), what, True, once):
        workspace.storage.refresh([path.parent], since=time.monotonic())
        before = _content(path)
        try:
            yield
            if _content(path) not in (None, before):
                workspace.storage.publish_file(path)
        except BaseException:
            _put_back(workspace, path, before)
            raise


def _content(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _put_back(workspace: Workspace, path: Path, before: bytes | None) -> None:
    with contextlib.suppress(OSError, PipelineError):  # what went wrong before is told
        if before is not None and _content(path) != before:
            write_atomically(path, before)
            workspace.storage.publish_file(path)  # where an upload without an answer may have replaced it


def about(chain: Chain) -> dict[str, str]:
    """What an event says about the pointer that it changed."""
    return {"dataset": chain.config.data.name, "architecture": chain.config.architecture.name}


def _write(path: Path, entry: Entry, before: list[Entry], rolled_back: list[str]) -> Pointer:
    pointer = Pointer(
        **msgspec.structs.asdict(entry),
        before=[former for former in before if former.run != entry.run][:REMEMBERED],
        rolled_back=[run for run in dict.fromkeys(rolled_back) if run != entry.run],
    )
    try:
        write_json(path, msgspec.to_builtins(pointer))
    except OSError as error:
        raise from_os_error(error, "write which run is current") from error
    return pointer
