"""Run stages of a workspace in an object store: fetch their inputs before, publish their results after.

The stage's own process knows nothing of the store: it reads and writes the local folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, WorkspaceError
from pipeline.files import link_or_copy, write_json
from pipeline.process.parent import Stopped
from pipeline.retraining import generations, registry, served
from pipeline.storage import ObjectStorage
from pipeline.storage.copies import FileLost, NotAsRecorded
from pipeline.workspace import MANIFEST, Run, Workspace, manifest
from pipeline.workspace.freshness import Chain, refresh

#: Seconds between polls for a new checkpoint.
POLL_SECONDS = 0.5

#: Checkpoints of a run to keep in the store.
KEEP = 2

#: The stages of the same run whose files each stage reads.
_READS = {
    "evaluate": ("train",),
    "export": ("train",),
    "promote": ("train", "evaluate"),
    "report": ("train", "evaluate", "export", "promote"),
}

log = logging.getLogger("vgg")


def publish_finished(chain: Chain, stage: str) -> bool:
    """Publish a stage that an earlier command finished here but failed to upload. Returns whether there was one.

    The promotion gate is never published late: the current model may have changed since.
    """
    storage, folder = chain.workspace.storage, chain.folder(stage)
    if not isinstance(storage, ObjectStorage) or folder is None or stage == "promote":
        return False
    recorded = manifest.read(folder)
    local = Chain(Workspace(chain.workspace.root), chain.given, chain.generation)
    if recorded is None or local.why(stage) or manifest.damage(folder, recorded):
        return False
    _publish(chain, storage, stage, recorded_only=True)
    return True


@contextlib.contextmanager
def synced(chain: Chain, stage: str, options: dict[str, Any]) -> Iterator[None]:
    """Fetch a stage's inputs, publish checkpoints while its process runs in this block, then publish its results.

    The caller holds the stage's lock.
    """
    storage, run = chain.workspace.storage, chain.run()
    with contextlib.ExitStack() as held:
        uploads: AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(storage, ObjectStorage):  # a workspace in a folder has everything in place
            if stage == "promote":
                held.enter_context(_gate_held(chain, storage))
            _fetch(chain, storage, stage, options)
            if run and stage == "train":
                uploads = _publishing_checkpoints(storage, run)
        try:
            with uploads:
                yield
        except Stopped as stopped:
            if stopped.finished:
                _finish(chain, stage)
            raise
        _finish(chain, stage)


def _finish(chain: Chain, stage: str) -> None:
    storage, pointer = chain.workspace.storage, chain.workspace.current(chain.config)
    if isinstance(storage, ObjectStorage):
        _publish(chain, storage, stage)
    elif stage == "promote":
        with registry.held(chain.workspace, pointer):
            _serve(chain, pointer)


def publish_folder(workspace: Workspace, folder: Path) -> None:
    """Publish a finished folder. The error, if any, says how to publish it later."""
    with _result_kept(folder):
        workspace.publish(folder)


@contextlib.contextmanager
def _gate_held(chain: Chain, storage: ObjectStorage) -> Iterator[None]:
    """Lock the pointer against other hosts while the promotion gate's process updates it."""
    lock = registry.lock_name(chain.workspace.current(chain.config))
    with storage.hold(lock, "updating the current model", True, functools.cache(log.info)):
        refresh([chain], since=time.monotonic())
        yield


def _fetch(chain: Chain, storage: ObjectStorage, stage: str, options: dict[str, Any]) -> None:
    run, dataset, workspace = chain.run(), chain.dataset_folder(), chain.workspace
    if stage == "dataset" or run is None or dataset is None:
        return
    workspace.fetch(dataset)
    for upstream in _READS.get(stage, ()):
        workspace.fetch(run.stage(upstream))
    if stage == "train":
        try:
            workspace.fetch(run.stage(stage), everything=True)
        except FileLost as error:  # as in a folder: nothing to resume from
            log.info("train %s: %s", run.run_id, error)
            (run.stage(stage) / MANIFEST).unlink(missing_ok=True)
            storage.fetch_log(run.log(stage))
        if "init_from" in options:
            workspace.fetch(Path(options["init_from"]).parent)
        _fetch_checkpoint(storage, run)
    else:
        storage.fetch_log(run.log(stage))
    if stage == "promote":
        _fetch_baseline(chain, run)


def _fetch_baseline(chain: Chain, run: Run) -> None:
    """Fetch the runs that the gate may compare with: the current and the previous one, or the one without a generation.

    If their data set is a different one, also fetch its test images. Also fetch the manifests of rolled-back runs.
    """
    workspace = chain.workspace
    pointer, plain = registry.read(workspace.current(chain.config)), generations.plain_run(chain)
    entries: list[registry.Entry] = [plain] if plain else []
    if pointer:
        workspace.storage.refresh(registry.run_at(workspace, place).stage("train") for place in pointer.rolled_back)
        entries = [pointer, *pointer.before[:1]]
    for entry in entries:
        other = registry.run_at(workspace, entry.run)
        folders = {other.stage("train"): "*", other.stage("evaluate"): "*"}
        if other.dataset_id != run.dataset_id:
            folders[workspace.dataset(other.dataset_id)] = "test_*"
        workspace.storage.refresh(folders)
        for folder, pattern in folders.items():
            with contextlib.suppress(NotAsRecorded):  # the gate reports what is wrong
                workspace.fetch(folder, pattern=pattern)


def _fetch_checkpoint(storage: ObjectStorage, run: Run) -> None:
    """Fetch the newest intact checkpoint from the store, unless a local one is as new."""
    local = max((path.name for path in run.checkpoints.glob("step-*.npz")), default="")
    stored = storage.store.find(storage.key(run.work))
    precision = run.work / "precision.json"
    if storage.key(precision) in stored and not precision.exists():
        storage.copies.get(storage.key(precision))
    checkpoints = re.compile(re.escape(storage.key(run.checkpoints)) + r"/(step-\d+\.npz)")
    newer = {match[1]: key for key in stored if (match := checkpoints.fullmatch(key)) and match[1] > local}
    for name in sorted(newer, reverse=True):
        shown = storage.shown(run.checkpoints / name)
        try:
            storage.copies.get(newer[name], _check_checkpoint)
            log.info("train %s: resumes from %s, published by another host", run.run_id, shown)
            return
        except NotAsRecorded:
            log.info("train %s: %s is damaged, trying the one before", run.run_id, shown)
        except FileNotFoundError:
            continue  # replaced by a newer one since the listing


def _check_checkpoint(file: Path) -> None:
    # A flipped bit can surface as almost any error of zipfile.
    with contextlib.suppress(Exception), zipfile.ZipFile(file) as archive:
        if archive.testzip() is None:
            return
    raise NotAsRecorded("damaged")


def _publish(chain: Chain, storage: ObjectStorage, stage: str, recorded_only: bool = False) -> None:
    workspace, folder, run = chain.workspace, chain.folder(stage), chain.run()
    assert folder is not None
    # A decision is never published late: the gate decides again.
    with contextlib.nullcontext() if stage == "promote" else _result_kept(folder):
        pointer = workspace.current(chain.config)
        if stage == "promote" and pointer.exists():
            storage.publish_file(pointer)
            _serve(chain, pointer)
        workspace.publish(folder, recorded_only)
        if stage == "dataset":
            _publish_source(chain, storage)
    if stage == "train" and run is not None:
        with contextlib.suppress(PipelineError):  # leftovers do no harm
            storage.store.delete(storage.store.find(storage.key(run.work)))


def _publish_source(chain: Chain, storage: ObjectStorage) -> None:
    """Publish the record of the source, unless another host has published the same for its own copy of the source."""
    pointer = chain.workspace.source_pointer(chain.config.data)
    mine = chain.source_record()
    if mine is None or not pointer.is_file():
        return
    local = {key: mine[key] for key in ("digest", "stat", "read")}
    write_json(chain.workspace.seen_source(chain.config.data), local)
    content, theirs = storage.store.read(storage.key(pointer)), None
    with contextlib.suppress(ValueError, RecursionError):
        theirs = chain.parse_source_record(json.loads(content or b"null"))
    host_specific = dict.fromkeys(("stat", "copies", "read", "change"))
    if content is not None and theirs is not None and {**theirs, **host_specific} == {**mine, **host_specific}:
        storage.copies.write(storage.key(pointer), content)
        refresh([chain], since=time.monotonic())
        return
    storage.publish_file(pointer)


def _serve(chain: Chain, pointer: Path) -> None:
    """Make the current model available to services. Raises only if that model is this chain's own."""
    current, run = registry.read(pointer), chain.run()
    promoted = current is not None and run is not None and current.run == run.place
    (served.serve if promoted else served.try_to_serve)(chain.workspace, pointer)


@contextlib.contextmanager
def _result_kept(folder: Path) -> Iterator[None]:
    """Extend a publishing error with where the result is kept and how to publish it."""
    try:
        yield
    except WorkspaceError as error:
        kept = f"the result is kept in {folder}; run the same command again to publish it (nothing is recomputed)"
        raise WorkspaceError(f"{error}; {kept}") from error


@contextlib.contextmanager
def _publishing_checkpoints(storage: ObjectStorage, run: Run) -> Iterator[None]:
    """Publish a training's checkpoints from a thread while it runs, and the newest one after it stops."""
    ended = threading.Event()
    thread = threading.Thread(target=_publish_checkpoints, args=(storage, run, ended), name="checkpoints", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _publish_checkpoints(storage: ObjectStorage, run: Run, ended: threading.Event) -> None:
    """Publish new checkpoints until `ended`. An outage does not stop the training: later checkpoints are tried too."""
    done, failed, last = "", False, False
    while not last:
        last = ended.wait(POLL_SECONDS)
        if last and failed:
            return
        try:
            newest = max(run.checkpoints.glob("step-*.npz"), default=None)
            if newest is not None and newest.name != done and not storage.lock_lost:
                _upload_checkpoint(storage, run, newest, first=not done)
                done = newest.name
                _prune_checkpoints(storage, newest)
            failed = False
        except FileNotFoundError:
            continue  # the training has replaced it by a newer one
        except (PipelineError, OSError) as error:
            if not failed:
                log.warning("train %s: a checkpoint could not be published, training continues: %s", run.run_id, error)
            failed = True


def _upload_checkpoint(storage: ObjectStorage, run: Run, newest: Path, first: bool) -> None:
    snapshot, precision = run.work / f".publishing-{newest.name}", run.work / "precision.json"
    snapshot.unlink(missing_ok=True)
    link_or_copy(newest, snapshot)  # the training deletes its own when it has newer ones
    try:
        storage.store.put(snapshot, storage.key(newest))
        if first and precision.exists():
            storage.store.put(precision, storage.key(precision))
    finally:
        snapshot.unlink(missing_ok=True)


def _prune_checkpoints(storage: ObjectStorage, newest: Path) -> None:
    stored = sorted(storage.store.find(storage.key(newest.parent)))
    # Also delete newer ones: they are from a training that this one did not resume, and would be mistaken for its own.
    kept = [key for key in stored if key <= storage.key(newest)][-KEEP:]
    storage.store.delete(key for key in stored if key not in kept)
