"""The exported model makes the same predictions as the trained network, anywhere, without MXNet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from luigi_runs import CLASSES, SmallChain, clean_environment

from pipeline import dataset, export
from pipeline.errors import PipelineError
from pipeline.process.child import Reporter
from pipeline.workspace import manifest

# MXNet's converter uses names that onnx has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mxnet"),
    pytest.mark.filterwarnings("ignore:Cannot decide type for the following arguments:UserWarning"),
]


@pytest.fixture(scope="module")
def model(finished: SmallChain) -> Path:
    return finished.folder("export") / "model.onnx"


@pytest.fixture(scope="module")
def images(finished: SmallChain) -> np.ndarray:
    """The test images in the model's input format: NCHW float32, 0 to 1."""
    folder = finished.chain().dataset_folder()
    assert folder is not None
    return np.asarray(dataset.load(folder).test_images).astype(np.float32) / 255


@pytest.fixture(scope="module")
def recorded(finished: SmallChain) -> dict[str, np.ndarray]:
    with np.load(finished.folder("evaluate") / "predictions.npz") as file:
        return dict(file)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_onnxruntime_predicts_the_same_as_mxnet_for_every_image(
    model: Path, images: np.ndarray, recorded: dict[str, np.ndarray], finished: SmallChain
) -> None:
    logits, probabilities = session(model).run(["logits", "probabilities"], {"images": images})
    assert np.array_equal(logits.argmax(1), recorded["predictions"])
    assert np.abs(probabilities - recorded["probabilities"]).max() < 1e-5
    metrics = json.loads((finished.folder("evaluate") / "metrics.json").read_text())
    assert float((logits.argmax(1) == recorded["labels"]).mean()) == metrics["accuracy"]


def test_the_batch_is_dynamic_and_the_rest_is_fixed(model: Path, images: np.ndarray) -> None:
    opened = session(model)
    (only,) = opened.get_inputs()
    assert (only.name, only.shape, only.type) == ("images", ["N", 3, 32, 32], "tensor(float)")
    assert [(value.name, value.shape) for value in opened.get_outputs()] == [
        ("logits", ["N", 10]),
        ("probabilities", ["N", 10]),
    ]
    whole = opened.run(["logits"], {"images": images})[0]
    for size in (1, 7):
        part = opened.run(["logits"], {"images": images[:size]})[0]
        assert np.abs(part - whole[:size]).max() < 1e-4


def test_loading_the_model_prints_no_warning(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2  # warnings and worse
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_metadata_say_how_to_use_the_model(model: Path, finished: SmallChain) -> None:
    metadata = session(model).get_modelmeta()
    facts = dict(metadata.custom_metadata_map)
    train = finished.manifest("train")
    assert json.loads(facts["classes"]) == CLASSES
    assert json.loads(facts["input"])["name"] == "images"
    assert "0 to 1" in json.loads(facts["input"])["layout"]
    assert json.loads(facts["outputs"]) == ["logits", "probabilities"]
    assert json.loads(facts["normalisation"])["mean"] == train["details"]["normalisation"]["mean"]
    assert "inside the graph" in json.loads(facts["normalisation"])["where"]
    assert facts["weights_sha256"] == train["files"]["model.params"]["sha256"]
    assert json.loads(facts["architecture"])["conv_arch"] == [[1, 4], [1, 8]]
    assert "tiny" in metadata.description
    assert metadata.producer_name == "mxnet"


def test_files_are_synced_before_they_are_renamed(done: SmallChain, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.add(os.fstat(number).st_ino), real(number))[1])
    export.export(done.chain(), Reporter())
    folder = done.folder("export")
    assert {name for name in export.FILES if (folder / name).stat().st_ino not in synced} == set()


def test_the_check_against_mxnet_is_in_the_manifest(finished: SmallChain) -> None:
    check = finished.manifest("export")["details"]["check"]
    assert (check["images"], check["top1_identical"]) == (60, 60)
    assert 0 <= check["max_difference"] < 1e-3
    assert 0 <= check["mxnet_max_difference"] < 1e-3
    assert check["accuracy"] == finished.manifest("evaluate")["details"]["accuracy"]


def test_mxnets_own_files_yield_the_same_logits_through_symbol_block_and_module(
    finished: SmallChain, model: Path, images: np.ndarray
) -> None:
    from pipeline import runtime

    mx = runtime.mxnet()
    folder = finished.folder("export")
    block = mx.gluon.SymbolBlock.imports(
        str(folder / "model-symbol.json"), ["images"], str(folder / "model-0000.params")
    )
    symbol, learned, running = mx.model.load_checkpoint(str(folder / "model"), 0)
    module = mx.mod.Module(symbol, data_names=["images"], label_names=None)
    module.bind([("images", images.shape)], for_training=False)
    module.set_params(learned, running)
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    expected = session(model).run(["logits"], {"images": images})[0]
    for outputs in (block(mx.nd.array(images)), module.get_outputs()):
        assert np.abs(outputs[0].asnumpy() - expected).max() < 1e-4


def test_the_model_runs_without_mxnet(
    model: Path, images: np.ndarray, recorded: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "images.npz", images=images)
    code = (
        "import json, sys\n"
        "sys.modules['mxnet'] = None\n"
        "import numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "(logits,) = session.run(['logits'], {'images': numpy.load(sys.argv[2])['images']})\n"
        "names = json.loads(session.get_modelmeta().custom_metadata_map['classes'])\n"
        "print(json.dumps([names[index] for index in logits.argmax(1)]))"
    )
    command = [sys.executable, "-I", "-c", code, str(model), str(tmp_path / "images.npz")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=clean_environment())
    assert json.loads(done.stdout) == [CLASSES[index] for index in recorded["predictions"]]


def test_dropout_and_dense_layers_leave_no_trace_but_their_weights(prepared: SmallChain) -> None:
    prepared.configure(architecture__dense=[16], architecture__batch_norm=False, training__normalize=False)
    result = prepared.luigi("Export")
    assert result.rc == 0, result.text
    graph = onnx.load(str(prepared.folder("export") / "model.onnx")).graph
    kinds = [node.op_type for node in graph.node]
    assert "Dropout" not in kinds
    assert "Identity" not in kinds
    assert len(graph.input) == 1
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    assert prepared.manifest("export")["details"]["check"]["top1_identical"] == 60


def test_weights_other_than_those_of_the_training_are_refused(done: SmallChain) -> None:
    weights = done.folder("train") / "model.params"
    content = bytearray(weights.read_bytes())
    content[-20] ^= 1
    weights.write_bytes(content)
    (done.folder("export") / "model.onnx").unlink()
    result = done.luigi("Export")
    assert result.rc != 0
    assert "model.params" in result.log
    assert "Traceback" not in result.text
    assert not done.chain().complete("export")


def test_a_model_that_disagrees_with_training_is_not_published(
    done: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = done.manifest("export")
    convert = export._write_onnx

    def broken(folder: Path, facts: dict[str, Any]) -> None:
        convert(folder, facts)
        model = onnx.load(str(folder / "model.onnx"))
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] == 4)
        values = onnx.numpy_helper.to_array(weight) * 1.01
        weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
        onnx.save(model, str(folder / "model.onnx"))

    monkeypatch.setattr(export, "_write_onnx", broken)
    with (
        open(done.root / "log", "w") as log,
        pytest.raises(PipelineError, match=r"model.onnx: its logits differ from the trained network's by up to"),
    ):
        export.export(done.chain(), Reporter(log=log))
    assert done.manifest("export") == before
    assert manifest.damage(done.folder("export"), before) == []
    assert not list(done.folder("export").glob(".export-*"))
