"""A stage's work on a workspace in a store: what it needs is fetched before, what it made is published after.

Everything here does nothing for a workspace in a folder. The stage's own process knows nothing of the store: it finds
its inputs in the mirror (see `pipeline.storage.mirror`) and leaves its results there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import AlreadyRunning, PipelineError, WorkspaceError
from pipeline.files import write_json
from pipeline.process.parent import Stopped
from pipeline.retraining import generations, registry
from pipeline.storage.mirror import Lost, Mirror, NotAsRecorded
from pipeline.workspace import MANIFEST, Run, Workspace, manifest
from pipeline.workspace.freshness import Chain

#: Seconds between two looks for a new checkpoint.
POLL_SECONDS = 0.5

#: Checkpoints of a run that stay in the store.
KEEP = 2

log = logging.getLogger("vgg")


def refresh(chain: Chain) -> None:
    """Take a new listing of what the chain is about: other hosts may have been at work."""
    if chain.workspace.mirror:
        chain.workspace.mirror.know([chain], since=time.monotonic())


def publish_finished(chain: Chain, stage: str) -> bool:
    """Publish a stage that was finished here before without getting into the store; False when there is none.

    The promotion gate is never published late: what is current may have changed since.
    """
    mirror = chain.workspace.mirror
    folder = chain.folder(stage)
    if mirror is None or folder is None or stage == "promote":
        return False
    recorded = manifest.read(folder)
    here = Chain(Workspace(chain.workspace.root), chain.config, chain.generation)
    if recorded is None or here.why(stage) or manifest.damage(folder, recorded):
        return False
    _publish(chain, stage, recorded_only=True)
    return True


@contextlib.contextmanager
def at_work(chain: Chain, stage: str, options: dict[str, Any]) -> Iterator[None]:
    """Around a stage's process, its lock being held: fetch what it needs, publish checkpoints and what it made."""
    mirror = chain.workspace.mirror
    if mirror is None:
        yield
        return
    with _gate_held(chain, mirror, stage):
        _fetch(chain, mirror, stage, options)
        run = chain.run()
        try:
            if stage == "train" and run is not None:
                _fetch_checkpoint(mirror, run)
                with Checkpoints(mirror, run):
                    yield
            else:
                yield
        except Stopped as stopped:
            if stopped.finished:
                _publish(chain, stage)
            raise
        _publish(chain, stage)


def publish_folder(workspace: Workspace, folder: Path) -> None:
    """Publish a finished folder; says in its error that nothing is lost."""
    if workspace.mirror is None:
        return
    try:
        workspace.mirror.publish(folder)
    except WorkspaceError as error:
        raise WorkspaceError(_kept(error, folder)) from error


# --- before -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _gate_held(chain: Chain, mirror: Mirror, stage: str) -> Iterator[None]:
    """For the promotion gate, whose process moves the pointer: hold it against other hosts."""
    if stage != "promote":
        yield
        return
    lock = registry.lock_name(chain.workspace.current(chain.config))
    with mirror.hold(lock, "the choice of the current model", True, log.info):
        mirror.know([chain], since=time.monotonic())
        yield


def _fetch(chain: Chain, mirror: Mirror, stage: str, options: dict[str, Any]) -> None:
    run, dataset = chain.run(), chain.dataset_folder()
    if stage == "dataset" or run is None or dataset is None:
        return
    mirror.fetch(dataset)
    upstream = {"train": (), "report": ("train", "evaluate", "export", "promote")}.get(stage, ("train", "evaluate"))
    for before in upstream:
        if before != stage:
            mirror.fetch(run.stage(before))
    if stage == "train":
        try:
            mirror.fetch(run.stage(stage), everything=True)
        except Lost as error:  # as in a folder: nothing to continue from
            log.info("train %s: %s", run.run_id, error)
            (run.stage(stage) / MANIFEST).unlink(missing_ok=True)
            mirror.fetch_log(run.log(stage))
        if "init_from" in options:
            mirror.fetch(Path(options["init_from"]).parent)
    else:
        mirror.fetch_log(run.log(stage))
    if stage == "promote":
        _fetch_baseline(chain, mirror)
    if stage == "report":
        _fetch_previous(chain, mirror, run)


def _fetch_baseline(chain: Chain, mirror: Mirror) -> None:
    """The runs that the gate may compare with: the current one and the one before, or the one before all generations.

    Of those that were rolled back the gate looks at the manifests.
    """
    pointer, before_all = registry.read(chain.workspace.current(chain.config)), generations.plain_run(chain)
    if pointer:
        mirror.know_folders(registry.run_at(chain.workspace, place).stage("train") for place in pointer.rolled_back)
    for entry in [pointer, *pointer.before[:1]] if pointer else [before_all] if before_all else []:
        other = registry.run_at(chain.workspace, entry.run)
        folders = [other.stage("train"), other.stage("evaluate")]
        mirror.know_folders([*folders, chain.workspace.dataset(other.dataset_id)])
        for folder in folders:
            with contextlib.suppress(NotAsRecorded):  # the gate says what is wrong with it
                mirror.fetch(folder)


def _fetch_previous(chain: Chain, mirror: Mirror, run: Run) -> None:
    """What the report tells of other generations."""
    base = run.run_id.partition("@")[0]
    mirror.know_runs(run.dataset_id, f"{base}*", ("train", "evaluate"))
    generations.find(chain.workspace, chain.config)  # their manifests
    train = manifest.read(run.stage("train"))
    previous = generations.previous(run, train) if train else None
    if previous is not None:
        with contextlib.suppress(NotAsRecorded):  # the report does without it
            mirror.fetch(previous.stage("evaluate"))


def _fetch_checkpoint(mirror: Mirror, run: Run) -> None:
    """Have the newest whole checkpoint of the store here, unless one here is as new."""
    here = max((path.name for path in run.checkpoints.glob("step-*.npz")), default="")
    there = mirror.store.find(mirror.place(run.work))
    precision = run.work / "precision.json"
    if mirror.place(precision) in there and not precision.exists():
        mirror.get(mirror.place(precision))
    checkpoints = re.compile(re.escape(mirror.place(run.checkpoints)) + r"/(step-\d+\.npz)")
    found = {match[1]: path for path in there if (match := checkpoints.fullmatch(path)) and match[1] > here}
    for name in sorted(found, reverse=True):
        file = run.checkpoints / name
        try:
            mirror.get(found[name], _check_checkpoint)
            log.info("train %s: going on from %s, which another host published", run.run_id, mirror.shown(file))
            return
        except NotAsRecorded:
            log.info("train %s: %s is damaged, taking the one before", run.run_id, mirror.shown(file))
        except FileNotFoundError:
            continue  # its host has a newer one by now


def _check_checkpoint(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            whole = archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error, ValueError):
        whole = False
    if not whole:
        raise NotAsRecorded("damaged")


# --- after --------------------------------------------------------------------------------------------------------


def _publish(chain: Chain, stage: str, recorded_only: bool = False) -> None:
    mirror, folder, run = chain.workspace.mirror, chain.folder(stage), chain.run()
    assert mirror is not None
    assert folder is not None
    pointers = {
        "dataset": chain.workspace.source_pointer(chain.config.data),
        "promote": chain.workspace.current(chain.config),
    }
    try:
        if stage == "promote" and pointers[stage].exists():
            mirror.publish_file(pointers[stage])
        mirror.publish(folder, recorded_only)
        if stage == "dataset":
            _publish_source(chain, mirror, pointers[stage])
    except WorkspaceError as error:
        raise WorkspaceError(_kept(error, folder)) from error
    if stage == "train" and run is not None:
        with contextlib.suppress(PipelineError):  # left-overs do no harm
            mirror.store.delete(mirror.store.find(mirror.place(run.checkpoints)))


def _publish_source(chain: Chain, mirror: Mirror, pointer: Path) -> None:
    """Publish what a source turned out to be, unless another host found the same in its own copy of the source."""
    mine = chain.source_record()
    if mine is None or not pointer.is_file():
        return
    write_json(chain.workspace.seen_source(chain.config.data), {"digest": mine["digest"], "stat": mine["stat"]})
    content, theirs = mirror.store.read(mirror.place(pointer)), None
    with contextlib.suppress(ValueError, RecursionError):
        theirs = chain.source_in(json.loads(content or b"null"))
    own = {"stat": None, "copies": None}
    if content is not None and theirs is not None and {**theirs, **own} == {**mine, **own}:
        mirror.write(mirror.place(pointer), content)
        mirror.know([chain], since=time.monotonic())
        return
    mirror.publish_file(pointer)


def _kept(error: WorkspaceError, folder: Path) -> str:
    return f"{error}; what was made is in {folder}, and the same command publishes it without doing the work again"


class Checkpoints:
    """Publishes a training's checkpoints from a thread while it runs, the newest one at last also when it stops.

    A store that is away for a while costs no training: the next checkpoint is tried again.
    """

    def __init__(self, mirror: Mirror, run: Run) -> None:
        self.mirror, self.run = mirror, run
        self._done = ""
        self._there: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="checkpoints", daemon=True)

    def __enter__(self) -> Checkpoints:
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        failed = False
        while not (ended := self._ended.wait(POLL_SECONDS)) or not failed:
            try:
                self._publish_newest()
                failed = False
            except (AlreadyRunning, FileNotFoundError):
                pass
            except (PipelineError, OSError) as error:
                if not failed:
                    what = "a checkpoint could not be published, training goes on"
                    log.warning("train %s: %s: %s", self.run.run_id, what, error)
                failed = True
            if ended:
                return

    def _publish_newest(self) -> None:
        newest = max(self.run.checkpoints.glob("step-*.npz"), key=lambda path: path.name, default=None)
        if newest is None or newest.name == self._done or self.mirror.lost:
            return
        kept = self.run.work / f".publishing-{newest.name}"
        kept.unlink(missing_ok=True)
        try:
            os.link(newest, kept)  # the training removes it when it has newer ones
        except PermissionError:  # a file system without links
            shutil.copyfile(newest, kept)
        try:
            place = self.mirror.place(newest)
            self.mirror.store.put(kept, place)
            precision = self.run.work / "precision.json"
            if not self._done:
                earlier = self.mirror.store.find(self.mirror.place(newest.parent))
                self._there = sorted(path for path in earlier if path != place)
                if precision.exists():
                    self.mirror.store.put(precision, self.mirror.place(precision))
            self._done = newest.name
        finally:
            kept.unlink(missing_ok=True)
        # Those of a training that this one does not go on from would be taken for newer.
        late = [path for path in self._there if path > place]
        self._there = [*(path for path in self._there if path not in late), place]
        spare, self._there = [*late, *self._there[:-KEEP]], self._there[-KEEP:]
        self.mirror.store.delete(spare)
