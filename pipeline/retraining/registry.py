"""The registry of current models. It has one small file, the pointer, for each data set and architecture name.

`current/<data name>/<architecture name>.json` records the current run, the digest of its weights, its accuracy, since
when it has been current, and the former current runs for a rollback. Replaced atomically. Imports nothing heavy.
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

#: How many former current runs a pointer keeps.
REMEMBERED = 50

_CHANGED = "{}/train no longer has the weights that were promoted"

log = logging.getLogger("vgg")


class Entry(Struct, frozen=True, kw_only=True):
    """A run that is or was current. `run` is its folder, relative to the workspace."""

    run: str
    generation: str
    weights_sha256: str
    architecture: str
    accuracy: float
    since: str

    def __post_init__(self) -> None:
        """Raise `ValueError` for a value that this program would never write."""
        _check_run(self.run)
        for text in (self.generation, self.weights_sha256, self.architecture, self.since):
            if text and not names.is_name(text):
                raise ValueError(f"{self.run}: found {text!a}")


class Pointer(Entry, frozen=True, kw_only=True):
    """The content of the file: the current run, the former ones (newest first), and those that were rolled back."""

    before: list[Entry] = []
    rolled_back: list[str] = []
    #: The digests of the weights that were rolled back, by run, which they outlive. Older pointers lack them.
    rolled_back_weights: dict[str, str] = {}

    def __post_init__(self) -> None:
        Entry.__post_init__(self)
        for run in (*self.rolled_back, *self.rolled_back_weights):
            _check_run(run)

    @property
    def entry(self) -> Entry:
        return Entry(**{name: getattr(self, name) for name in Entry.__struct_fields__})


def _check_run(run: str) -> None:
    parts = run.split("/")
    if len(parts) != 3 or parts[0] != "runs" or not names.is_relative_path(run):
        raise ValueError(f"run: found {run!a}, expected runs/DATASET/RUN")


def read(path: Path) -> Pointer | None:
    """Read the pointer at `path`; None if nothing was promoted yet. Raises `WorkspaceError` if it is damaged."""
    try:
        return msgspec.json.decode(read_regular(path), type=Pointer)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, "read which run is current") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkspaceError(
            f"{path}: damaged ({error}); restore it, or delete it and choose a model with Rollback --to NAME"
        ) from error


def ever_current(path: Path) -> set[str]:
    """Return all runs that are or were current; empty if the pointer at `path` is missing or damaged."""
    pointer = _intact(path)
    return {pointer.run, *(entry.run for entry in pointer.before), *pointer.rolled_back} if pointer else set()


def rolled_back(path: Path) -> list[str]:
    """Return the runs that were rolled back; empty if the pointer at `path` is missing or damaged."""
    pointer = _intact(path)
    return pointer.rolled_back if pointer else []


def _intact(path: Path) -> Pointer | None:
    with contextlib.suppress(WorkspaceError):
        return read(path)
    return None


def pointers(workspace: Workspace) -> list[Path]:
    """Return the paths of all pointers of the workspace."""
    workspace.storage.refresh_matching("current/*")
    return workspace.currents()


def run_at(workspace: Workspace, place: str) -> Run:
    """Return the run whose path in the workspace is `place`, `runs/<dataset>/<run>`."""
    return workspace.run(*place.split("/")[1:])


def problems(workspace: Workspace, entry: Entry) -> list[str]:
    """Return why the run of `entry` is no longer what was promoted; empty if it still is."""
    run = run_at(workspace, entry.run)
    workspace.storage.refresh([run.root], ("train", "evaluate"))
    folder = run.stage("train")
    train = manifest.read(folder)
    if train is None:
        return [f"{entry.run}/train is missing or unfinished"]
    if manifest.digest(train, "model.params") != entry.weights_sha256:
        return [_CHANGED.format(entry.run)]
    try:
        return [f"{entry.run}/{problem}" for problem in manifest.file_problems(folder, train, workspace.storage)]
    except WorkspaceError as error:  # unreadable, so unusable for now
        return [str(error)]


def baseline_problem(workspace: Workspace, path: Path) -> str:
    """Return why no generation could be compared with the current model, and what to do; empty if it could.

    Raises `WorkspaceError` if the pointer at `path` is damaged.
    """
    pointer = read(path)
    found = problems(workspace, pointer) if pointer else []
    if pointer and not pointer.generation and found == [_CHANGED.format(pointer.run)]:
        return ""  # it was trained further: the gate adopts its new weights
    return with_remedy(path, found) if found else ""


def with_remedy(path: Path, problems: list[str]) -> str:
    """Say what to do about `problems` of the model that the pointer at `path` names."""
    remedy = "restore it, roll back to an earlier one (luigi --module tasks Rollback), or delete"
    return f"{'; '.join(problems)}; {remedy} {path} to start afresh"


def set_current(path: Path, entry: Entry) -> Pointer:
    """Make `entry` current, and put the former one first in `before`. The caller holds the lock."""
    old = read(path)
    return _write(path, entry, [old.entry, *old.before] if old else [], _barred(old))


def withdraw(path: Path, entry: Entry) -> Pointer:
    """Make `entry` current, and bar the gate from promoting the former one again. The caller holds the lock."""
    old = read(path)
    assert old is not None
    return _write(path, entry, old.before, {**_barred(old), old.run: old.weights_sha256})


def entry_of(run: Run) -> Entry | None:
    """Build the entry for a run that becomes current now; None if its weights are not evaluated."""
    train, evaluate = manifest.read(run.stage("train")), manifest.read(run.stage("evaluate"))
    weights = manifest.digest(train, "model.params")
    accuracy = evaluate["details"].get("accuracy") if evaluate else None
    if not (train and evaluate and weights) or accuracy is None or evaluate["inputs"].get("model.params") != weights:
        return None
    return Entry(
        run=run.place,
        generation=run.generation,
        weights_sha256=weights,
        architecture=train["inputs"].get("architecture", ""),
        accuracy=accuracy,
        since=now(),
    )


def name_of(path: Path) -> str:
    """Return a pointer's name on the command line: `<data name>/<architecture name>`."""
    return f"{path.parent.name}/{path.stem}"


def lock_name(path: Path) -> str:
    """Return the name of a pointer's lock."""
    return f"current.{path.parent.name}.{path.stem}"


@contextlib.contextmanager
def held(workspace: Workspace, path: Path, on_wait: locks.OnWait = log.info) -> Iterator[None]:
    """Hold the lock of the pointer at `path` while it is read and replaced, then publish it to the store, if any.

    Restores the former pointer after an error. Calls `on_wait` once with a line about the holder it waits for.
    """
    name, what, once = lock_name(path), "updating the current model", functools.cache(on_wait)
    # Take the store's lock first: the gate's parent holds it while its process takes the local one.
    with workspace.storage.hold(name, what, True, once), locks.hold(workspace.lock(name), what, True, once):
        workspace.storage.refresh([path.parent], since=time.monotonic())
        before = _content(path)
        try:
            yield
            if _content(path) not in (None, before):
                workspace.storage.publish_file(path)
        except BaseException:
            _restore(workspace, path, before)
            raise


def _content(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _restore(workspace: Workspace, path: Path, before: bytes | None) -> None:
    with contextlib.suppress(OSError, PipelineError):  # the first error is the one to report
        if before is not None and _content(path) != before:
            write_atomically(path, before)
            workspace.storage.publish_file(path)  # an upload that got no response may have replaced it there


def event_fields(chain: Chain) -> dict[str, str]:
    """Return the fields that say in an event which pointer it is about."""
    return {"dataset": chain.config.data.name, "architecture": chain.config.architecture.name}


def _barred(pointer: Pointer | None) -> dict[str, str]:
    """Return the runs that were rolled back and their weights, if known."""
    return {run: pointer.rolled_back_weights.get(run, "") for run in pointer.rolled_back} if pointer else {}


def _write(path: Path, entry: Entry, before: list[Entry], barred: dict[str, str]) -> Pointer:
    barred = {run: weights for run, weights in barred.items() if run != entry.run}
    pointer = Pointer(
        **msgspec.structs.asdict(entry),
        before=[former for former in before if former.run != entry.run][:REMEMBERED],
        rolled_back=list(barred),
        rolled_back_weights={run: weights for run, weights in barred.items() if weights},
    )
    try:
        write_json(path, msgspec.to_builtins(pointer))
    except OSError as error:
        raise from_os_error(error, "write which run is current") from error
    return pointer
