"""Generations of a small chain without training them: copies of a finished run with other weights."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
from luigi_runs import SmallChain

from pipeline import dataset
from pipeline.dataset import store
from pipeline.dataset.layouts import Batch, Content
from pipeline.files import read_json, write_json
from pipeline.retraining import generations, registry, retention
from pipeline.workspace import Run, dataset_id, manifest

#: Test images, their labels, and the classes.
Data = tuple[np.ndarray, np.ndarray, list[str]]


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
    export = manifest.read(run.stage("export"))
    assert export
    details = {**export["details"], "weights_sha256": inputs["model.params"]}
    (run.stage("export") / "model.onnx").write_text(f"exported from {weights}")
    manifest.write(run.stage("export"), "export", export["files"], export["inputs"], details)


def new_test_set(small: SmallChain, name: str, test: Data, right: np.ndarray | None = None) -> Run:
    """The trained generation `name` on a data set with another test set under the same name.

    It is evaluated: `right` says of which images correctly, by default all.
    """
    chain, plain = small.chain(), small.chain().run()
    record = chain.source_record()
    assert plain
    assert record
    images, labels, classes = test
    old = dataset.load(chain.workspace.dataset(plain.dataset_id))
    parts = [Batch(a.reshape(len(a), -1), b) for a, b in ((old.train_images, old.train_labels), (images, labels))]
    content = Content(parts[:1], parts[1:], classes, "")
    details = {**old.manifest["details"], "digest": store.digest(content), "classes": classes}
    folder = chain.workspace.dataset(dataset_id(chain.config.data.name, details["digest"]))
    store.write(folder, content, {**details, "test_images": len(labels)})
    about = {"digest": details["digest"], "classes": len(classes)}
    write_json(chain.workspace.source_pointer(chain.config.data), {**record, "dataset": folder.name, **about})
    run = small.chain(name).run()
    assert run
    for stage in ("train", "export"):
        shutil.copytree(plain.stage(stage), run.stage(stage))
    recorded = read_json(run.stage("train") / "manifest.json")
    assert recorded
    recorded["details"]["dataset"]["classes"] = classes
    change(run.stage("train"), details=recorded["details"])
    predictions = labels if right is None else np.where(right, labels, (labels + 1) % len(classes)).astype(np.uint8)
    run.stage("evaluate").mkdir()
    np.savez(run.stage("evaluate") / "predictions.npz", labels=labels, predictions=predictions, probabilities=labels)
    inputs = {"model.params": recorded["files"]["model.params"]["sha256"]}
    accuracy = {"accuracy": float((predictions == labels).mean())}
    manifest.write(run.stage("evaluate"), "evaluate", ["predictions.npz"], inputs, accuracy)
    return run


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
