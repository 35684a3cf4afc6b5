"""A stage's work on a workspace in an object store: what it needs is fetched before, what it made is published after.

The stage's own process knows nothing of the store: it finds its inputs in the folder here and leaves its results there.
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
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, WorkspaceError
from pipeline.files import link_or_copy, write_json
from pipeline.process.parent import Stopped
from pipeline.retraining import generations, registry, served
from pipeline.storage import ObjectStorage
from pipeline.storage.copies import Lost, NotAsRecorded
from pipeline.workspace import MANIFEST, Run, Workspace, manifest
from pipeline.workspace.freshness import Chain, refresh

#: Seconds between two looks for a new checkpoint.
POLL_SECONDS = 0.5

#: Checkpoints of a run that stay in the store.
KEEP = 2

#: The stages of a run whose files each stage reads.
_READS = {
    "evaluate": ("train",),
    "export": ("train",),
    "promote": ("train", "evaluate"),
    "report": ("train", "evaluate", "export", "promote"),
}

log = logging.getLogger("vgg")


def publish_finished(chain: Chain, stage: str) -> bool:
    """Publish a stage that was finished here before without getting into the store; False when there is none.

    The promotion gate is never published late: what is current may have changed since.
    """
    storage, folder = chain.workspace.storage, chain.folder(stage)
    if not isinstance(storage, ObjectStorage) or folder is None or stage == "promote":
        return False
    recorded = manifest.read(folder)
    here = Chain(Workspace(chain.workspace.root), chain.given, chain.generation)
    if recorded is None or here.why(stage) or manifest.damage(folder, recorded):
        return False
    _publish(chain, storage, stage, recorded_only=True)
    return True


@contextlib.contextmanager
def at_work(chain: Chain, stage: str, options: dict[str, Any]) -> Iterator[None]:
    """Around a stage's process, its lock being held: fetch what it needs, publish checkpoints and what it made."""
    storage, run = chain.workspace.storage, chain.run()
    with contextlib.ExitStack() as held:
        following: AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(storage, ObjectStorage):  # in a folder everything is in place
            if stage == "promote":
                held.enter_context(_gate_held(chain, storage))
            _fetch(chain, storage, stage, options)
            if run and stage == "train":
                following = _publishing_checkpoints(storage, run)
        try:
            with following:
                yield
        except Stopped as stopped:
            if stopped.finished:
                _finish(chain, stage)
            raise
        _finish(chain, stage)


def _finish(chain: Chain, stage: str) -> None:
    """Let others see what a stage has made."""
    storage, pointer = chain.workspace.storage, chain.workspace.current(chain.config)
    if isinstance(storage, ObjectStorage):
        _publish(chain, storage, stage)
    elif stage == "promote":
        with registry.held(chain.workspace, pointer):
            _serve(chain, pointer)


def publish_folder(workspace: Workspace, folder: Path) -> None:
    """Publish a finished folder; says in its error that nothing is lost."""
    with _nothing_lost(folder):
        workspace.publish(folder)


# --- before -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _gate_held(chain: Chain, storage: ObjectStorage) -> Iterator[None]:
    """For the promotion gate, whose process moves the pointer: hold it against other hosts."""
    lock = registry.lock_name(chain.workspace.current(chain.config))
    with storage.hold(lock, "updating the current model", True, functools.cache(log.info)):
        refresh([chain], since=time.monotonic())
        yield


def _fetch(chain: Chain, storage: ObjectStorage, stage: str, options: dict[str, Any]) -> None:
    run, dataset, workspace = chain.run(), chain.dataset_folder(), chain.workspace
    if stage == "dataset" or run is None or dataset is None:
        return
    workspace.fetch(dataset)
    for before in _READS.get(stage, ()):
        workspace.fetch(run.stage(before))
    if stage == "train":
        try:
            workspace.fetch(run.stage(stage), everything=True)
        except Lost as error:  # as in a folder: nothing to resume from
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
    """The runs that the gate may compare with: the current one and the one before, or the one before all generations.

    Of their data set, where it is another one, the test images. Of those that were rolled back the gate looks at the
    manifests.
    """
    workspace = chain.workspace
    pointer, before_all = registry.read(workspace.current(chain.config)), generations.plain_run(chain)
    if pointer:
        workspace.storage.refresh(registry.run_at(workspace, place).stage("train") for place in pointer.rolled_back)
    for entry in [pointer, *pointer.before[:1]] if pointer else [before_all] if before_all else []:
        other = registry.run_at(chain.workspace, entry.run)
        folders = {other.stage("train"): "*", other.stage("evaluate"): "*"}
        if other.dataset_id != run.dataset_id:
            folders[workspace.dataset(other.dataset_id)] = "test_*"
        workspace.storage.refresh(folders)
        for folder, pattern in folders.items():
            with contextlib.suppress(NotAsRecorded):  # the gate says what is wrong with it
                workspace.fetch(folder, pattern=pattern)


def _fetch_checkpoint(storage: ObjectStorage, run: Run) -> None:
    """Have the newest whole checkpoint of the store here, unless one here is as new."""
    here = max((path.name for path in run.checkpoints.glob("step-*.npz")), default="")
    there = storage.store.find(storage.key(run.work))
    precision = run.work / "precision.json"
    if storage.key(precision) in there and not precision.exists():
        storage.copies.get(storage.key(precision))
    checkpoints = re.compile(re.escape(storage.key(run.checkpoints)) + r"/(step-\d+\.npz)")
    found = {match[1]: key for key in there if (match := checkpoints.fullmatch(key)) and match[1] > here}
    for name in sorted(found, reverse=True):
        shown = storage.shown(run.checkpoints / name)
        try:
            storage.copies.get(found[name], _check_checkpoint)
            log.info("train %s: resumes from %s, published by another host", run.run_id, shown)
            return
        except NotAsRecorded:
            log.info("train %s: %s is damaged, taking the one before", run.run_id, shown)
        except FileNotFoundError:
            continue  # its host has a newer one by now


def _check_checkpoint(file: Path) -> None:
    wrong = (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error, ValueError)
    with contextlib.suppress(*wrong), zipfile.ZipFile(file) as archive:
        if archive.testzip() is None:
            return
    raise NotAsRecorded("damaged")


# --- after --------------------------------------------------------------------------------------------------------


def _publish(chain: Chain, storage: ObjectStorage, stage: str, recorded_only: bool = False) -> None:
    workspace, folder, run = chain.workspace, chain.folder(stage), chain.run()
    assert folder is not None
    with _nothing_lost(folder):
        pointer = workspace.current(chain.config)
        if stage == "promote" and pointer.exists():
            storage.publish_file(pointer)
            _serve(chain, pointer)
        workspace.publish(folder, recorded_only)
        if stage == "dataset":
            _publish_source(chain, storage)
    if stage == "train" and run is not None:
        with contextlib.suppress(PipelineError):  # left-overs do no harm
            storage.store.delete(storage.store.find(storage.key(run.work)))


def _publish_source(chain: Chain, storage: ObjectStorage) -> None:
    """Publish what a source turned out to be, unless another host found the same in its own copy of the source."""
    pointer = chain.workspace.source_pointer(chain.config.data)
    mine = chain.source_record()
    if mine is None or not pointer.is_file():
        return
    here = {key: mine[key] for key in ("digest", "stat", "read")}
    write_json(chain.workspace.seen_source(chain.config.data), here)
    content, theirs = storage.store.read(storage.key(pointer)), None
    with contextlib.suppress(ValueError, RecursionError):
        theirs = chain.source_in(json.loads(content or b"null"))
    own = dict.fromkeys(("stat", "copies", "read", "change"))
    if content is not None and theirs is not None and {**theirs, **own} == {**mine, **own}:
        storage.copies.write(storage.key(pointer), content)
        refresh([chain], since=time.monotonic())
        return
    storage.publish_file(pointer)


def _serve(chain: Chain, pointer: Path) -> None:
    """Make the current model available to services; an error only when it is the chain's own that cannot be."""
    current, run = registry.read(pointer), chain.run()
    promoted = current is not None and run is not None and current.run == run.place
    (served.serve if promoted else served.try_to_serve)(chain.workspace, pointer)


@contextlib.contextmanager
def _nothing_lost(folder: Path) -> Iterator[None]:
    """Around publishing: an error says that what was made is still here."""
    try:
        yield
    except WorkspaceError as error:
        kept = f"the result is kept in {folder}; run the same command again to publish it (nothing is recomputed)"
        raise WorkspaceError(f"{error}; {kept}") from error


@contextlib.contextmanager
def _publishing_checkpoints(storage: ObjectStorage, run: Run) -> Iterator[None]:
    """Publish a training's checkpoints from a thread while it runs, the newest one at last also when it stops."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(storage, run, ended), name="checkpoints", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(storage: ObjectStorage, run: Run, ended: threading.Event) -> None:
    """Until `ended`. A store that is away for a while costs no training: the next checkpoint is tried again."""
    done, failed, last = "", False, False
    while not last:
        last = ended.wait(POLL_SECONDS)
        if last and failed:
            return
        try:
            newest = max(run.checkpoints.glob("step-*.npz"), default=None)
            if newest is not None and newest.name != done and not storage.lost:
                _upload_checkpoint(storage, run, newest, first=not done)
                done = newest.name
                _delete_former(storage, newest)
            failed = False
        except FileNotFoundError:
            continue  # the training has a newer one by now
        except (PipelineError, OSError) as error:
            if not failed:
                what = "a checkpoint could not be published, training continues"
                log.warning("train %s: %s: %s", run.run_id, what, error)
            failed = True


def _upload_checkpoint(storage: ObjectStorage, run: Run, newest: Path, first: bool) -> None:
    kept, precision = run.work / f".publishing-{newest.name}", run.work / "precision.json"
    kept.unlink(missing_ok=True)
    link_or_copy(newest, kept)  # the training removes it when it has newer ones
    try:
        storage.store.put(kept, storage.key(newest))
        if first and precision.exists():
            storage.store.put(precision, storage.key(precision))
    finally:
        kept.unlink(missing_ok=True)


def _delete_former(storage: ObjectStorage, newest: Path) -> None:
    there = sorted(storage.store.find(storage.key(newest.parent)))
    # Newer ones are of a training that this one did not resume from, and would be taken for its own.
    current = [key for key in there if key <= storage.key(newest)][-KEEP:]
    storage.store.delete(key for key in there if key not in current)
