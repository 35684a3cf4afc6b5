"""Make generations of a small chain without training: copies of a finished run with other weights."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
from luigi_runs import SmallChain

from pipeline import dataset
from pipeline.dataset import store
from pipeline.dataset.layouts import Batch, Content
from pipeline.files import read_json, write_json
from pipeline.process import child
from pipeline.retraining import generations, promotion, registry, retention
from pipeline.workspace import Run, dataset_id, manifest

#: Test images, their labels, and the classes.
Data = tuple[np.ndarray, np.ndarray, list[str]]


def make(small: SmallChain, name: str, outcome: str = "promoted", weights: str = "") -> Run:
    """Make the newest generation as a copy of the run without a generation, with its own weights."""
    plain, run = small.run(), small.run(name)
    for folder in ("train", "evaluate", "export", "report"):
        shutil.copytree(plain.stage(folder), run.stage(folder))
    retrain(run, weights or name)
    made = len(generations.find(small.chain().workspace, small.chain().config))
    change(run.stage("train"), created=f"2030-01-{made + 1:02}T00:00:00Z")
    if outcome:
        run.stage("promote").mkdir()
        write_json(run.stage("promote") / "decision.json", {"outcome": outcome})
        manifest.write(run.stage("promote"), "promote", ["decision.json"], {}, {})
    if outcome == "promoted":
        make_current(small, run)
    return run


def retrain(run: Run, weights: str) -> None:
    """Replace the weights of a finished run, with unchanged metrics and a new export."""
    (run.stage("train") / "model.params").write_text(weights)
    (run.stage("export") / "model.onnx").write_text(f"exported from {weights}")
    digest = _rewrite(run, "train")["files"]["model.params"]["sha256"]
    _rewrite(run, "evaluate", inputs={"model.params": digest})
    _rewrite(run, "export", details={"weights_sha256": digest})


def _rewrite(run: Run, stage: str, **more: dict[str, str]) -> dict[str, Any]:
    """Rewrite the manifest of a stage for its present files, with more `inputs` or `details`."""
    old = manifest.read(run.stage(stage))
    assert old
    inputs, details = ({**old[part], **more.get(part, {})} for part in ("inputs", "details"))
    return manifest.write(run.stage(stage), stage, old["files"], inputs, details)


def new_test_set(small: SmallChain, name: str, test: Data, right: np.ndarray | None = None) -> Run:
    """Make the trained generation `name` on a data set of the same name with another test set.

    `right` says which images it classifies correctly, by default all.
    """
    chain, plain = small.chain(), small.run()
    record = chain.source_record()
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
    run = small.run(name)
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


def make_current(small: SmallChain, run: Run) -> None:
    entry = registry.entry_of(run)
    assert entry
    registry.set_current(pointer_of(small), entry)


def current(small: SmallChain) -> registry.Pointer:
    pointer = registry.read(pointer_of(small))
    assert pointer
    return pointer


def run_gate(small: SmallChain, generation: str) -> dict[str, Any]:
    """Run the promotion gate on a generation and return its decision."""
    promotion.promote(small.chain(generation), child.Reporter())
    decision = generations.decision(small.run(generation))
    assert decision
    return decision


def expired(small: SmallChain, keep: int) -> list[str]:
    return [item.name for item in retention.expired(small.chain(), keep)]
