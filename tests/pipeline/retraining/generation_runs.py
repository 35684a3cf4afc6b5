"""Generations of a small chain without training them: copies of a finished run with other weights."""

from __future__ import annotations

import shutil
from typing import Any

from luigi_runs import SmallChain

from pipeline.files import read_json, write_json
from pipeline.retraining import generations, registry, retention
from pipeline.workspace import Run, manifest


def make(small: SmallChain, name: str, outcome: str = "promoted", weights: str = "") -> Run:
    """A generation after all others, copied from the finished run without one, with weights of its own."""
    plain, run = small.chain().run(), small.chain(name).run()
    assert plain
    assert run
    for folder in ("train", "evaluate", "export", "report"):
        shutil.copytree(plain.stage(folder), run.stage(folder))
    trained_anew(run, weights or name)
    made = len(generations.find(small.chain().workspace, small.chain().config))
    change(run.stage("train"), created=f"2030-01-{made + 1:02}T00:00:00Z")
    if outcome:
        run.stage("promote").mkdir()
        write_json(run.stage("promote") / "decision.json", {"outcome": outcome})
        manifest.write(run.stage("promote"), "promote", ["decision.json"], {}, {})
    if outcome == "promoted":
        entry = registry.entry_of(run, name)
        assert entry
        registry.set_current(pointer_of(small), entry)
    return run


def trained_anew(run: Run, weights: str) -> None:
    """Other weights in a finished run, evaluated (the same) and exported."""
    train, evaluate = manifest.read(run.stage("train")), manifest.read(run.stage("evaluate"))
    assert train
    assert evaluate
    (run.stage("train") / "model.params").write_text(weights)
    manifest.write(run.stage("train"), "train", train["files"], train["inputs"], train["details"])
    train = manifest.read(run.stage("train"))
    assert train
    inputs = {**evaluate["inputs"], "model.params": train["files"]["model.params"]["sha256"]}
    manifest.write(run.stage("evaluate"), "evaluate", evaluate["files"], inputs, evaluate["details"])


def change(folder: Any, **values: Any) -> None:
    recorded = read_json(folder / "manifest.json")
    assert recorded
    write_json(folder / "manifest.json", {**recorded, **values})


def pointer_of(small: SmallChain) -> Any:
    return small.chain().workspace.current(small.chain().config)


def current(small: SmallChain) -> str:
    pointer = registry.read(pointer_of(small))
    assert pointer
    return pointer.generation


def expired(small: SmallChain, keep: int) -> list[str]:
    return [item.name for item in retention.expired(small.chain(), keep)]
