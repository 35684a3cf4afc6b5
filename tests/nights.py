"""Simulated nightly retraining: each generation is a copy of a finished one with different weights.

A night leaves what a real one leaves: a run, locks, events, the pointer to the current model; weekly also a data set.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luigi_runs import SmallChain

from pipeline.files import read_json, write_json
from pipeline.retraining import generations, registry, trash
from pipeline.storage import locks
from pipeline.workspace import RUN_FOLDERS, Run, Workspace, dataset_id, events, manifest

FIRST = datetime.date(2026, 1, 1)


def nights(small: SmallChain, count: int) -> Iterator[datetime.date]:
    """Make `count` generations of a finished chain, one per day. Yields each day once its generation is made."""
    template = small.run()
    for number in range(count):
        day = FIRST + datetime.timedelta(days=number)
        if number % 7 == 6:
            _new_data(small, day)
        _night(small, template, day)
        yield day


def age(workspace: Workspace, days: int) -> None:
    """Make the trash, `work/` and formerly served models `days` days older."""
    passed = datetime.timedelta(days=days)
    for name in trash.folder_names(workspace):  # oldest first, so that the new names are free
        when = datetime.datetime.strptime(name, trash.WHEN) - passed
        (workspace.trash / name).rename(workspace.trash / when.strftime(trash.WHEN))
    for path in (*workspace.work.rglob("*"), *workspace.root.glob("current/*/*@*")):
        then = path.lstat().st_mtime - passed.total_seconds()
        os.utime(path, (then, then))


def _new_data(small: SmallChain, day: datetime.date) -> None:
    """Simulate a changed source: from now on it is another data set."""
    chain = small.chain()
    old, pointer = small.folder("dataset"), chain.workspace.source_pointer(chain.config.data)
    digest = hashlib.sha256(day.isoformat().encode()).hexdigest()
    new = chain.workspace.dataset(dataset_id(chain.config.data.name, digest))
    shutil.copytree(old, new)
    _rewrite(new, {}, {"digest": digest})
    write_json(pointer, {**(read_json(pointer) or {}), "dataset": new.name, "digest": digest})


def _night(small: SmallChain, template: Run, day: datetime.date) -> None:
    chain, run = small.chain(day.isoformat()), small.run(day.isoformat())
    for stage in (*RUN_FOLDERS, "train-process"):
        with locks.hold(run.lock(stage), stage, wait=False):
            pass
    for stage in ("train", "evaluate", "export", "promote", "report"):
        if stage == "promote":
            run.stage(stage).mkdir()
            write_json(run.stage(stage) / "decision.json", {"outcome": generations.PROMOTED, "reason": "simulated"})
            manifest.write(run.stage(stage), stage, ["decision.json"], chain.inputs(stage), {})  # type: ignore[arg-type]
        else:
            shutil.copytree(template.stage(stage), run.stage(stage))
            if stage == "train":
                (run.stage(stage) / "model.params").write_text(day.isoformat())
            weights = {"weights_sha256": chain.inputs("promote")["model.params"]}
            _rewrite(run.stage(stage), chain.inputs(stage), weights if stage == "export" else {})
        about = {"stage": stage, "run": chain.run_id, "generation": chain.generation}
        events.record(chain.workspace, "started", **about, reasons=["no result yet"])
        events.record(chain.workspace, "finished", **about, seconds=12.345)
    path, entry = chain.workspace.current(chain.config), registry.entry_of(run)
    assert entry
    with registry.held(chain.workspace, path):
        registry.set_current(path, entry)
    assert not generations.unfinished(chain)


def _rewrite(folder: Path, inputs: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    old = manifest.read(folder)
    assert old
    manifest.write(folder, old["stage"], old["files"], {**old["inputs"], **inputs}, {**old["details"], **details})
