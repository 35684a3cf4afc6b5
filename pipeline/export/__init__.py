"""The export stage: from `train/` of a run to `export/`, a model that runs without this pipeline.

Writes `model.onnx` (runs anywhere, without MXNet) and MXNet's own `model-symbol.json` and `model-0000.params`. Both
take RGB images as (N, 3, 32, 32) float32 in 0..1 and normalise them inside the graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from pipeline import dataset, evaluation, runtime
from pipeline.config import IMAGE_SIZE
from pipeline.errors import PipelineError, from_os_error
from pipeline.export import onnx_runner
from pipeline.model import CHANNELS
from pipeline.process.reporter import Reporter
from pipeline.text import cause
from pipeline.workspace import MANIFEST, manifest
from pipeline.workspace.freshness import Chain

FILES = ("model.onnx", "model-symbol.json", "model-0000.params")

INPUT, OUTPUTS = "images", ("logits", "probabilities")
LAYOUT = "NCHW float32, RGB, values 0 to 1 (a pixel's 0..255 divided by 255)"

#: The version of ONNX that MXNet's converter writes; onnxruntime 1.8 and later support it.
_OPSET, _IR_VERSION = 13, 7

#: Largest difference of a logit, relative to the largest logit, that a different order of operations may cause.
_TOLERANCE = 1e-3

#: Maximum number of test images for checking the exported model, evenly spaced. A fault shows on any of them.
_CHECKED = 500


def export(chain: Chain, reporter: Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Export the run's weights, check the result on test images and publish it; returns the manifest.

    Raises `WeightsError` for altered weights, `PipelineError` when the exported model disagrees with the trained one.
    """
    run, train = evaluation.trained_run(chain)
    inputs = chain.inputs("export")
    data = dataset.load(run.workspace.dataset(run.dataset_id))
    runtime.adapt_to_load(reporter.write)
    network = evaluation.TrainedNetwork.load(run, train, runtime.devices("cpu").contexts[0])
    facts = _facts(train, network, chain.config.evaluation.tta)
    folder = run.stage("export")
    started = time.monotonic()
    try:
        with _staging(folder) as staging:
            _write_mxnet(network, staging)
            _write_onnx(staging, facts)
            reporter.note(f"written in {time.monotonic() - started:.1f} s; checking against MXNet on the test images")
            check = _check(staging, network, data, reporter)
            # The stage is incomplete from here until the new manifest is written.
            (folder / MANIFEST).unlink(missing_ok=True)
            for name in FILES:
                with open(staging / name, "rb") as file:
                    os.fsync(file.fileno())  # MXNet and onnx do not
                os.replace(staging / name, folder / name)
        versions = runtime.versions() | {module.__name__: module.__version__ for module in (onnx, onnxruntime)}
        details = {"run": run.run_id, **facts, "check": check, "versions": versions}
        value = manifest.write(folder, "export", FILES, inputs, details)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "publish the exported model") from error
    reporter.note(
        f"model.onnx agrees with MXNet on {check['images']:,} images: {check['top1_identical']:,} identical "
        f"predictions, logits differ by at most {check['max_difference']:.2g}"
    )
    return value


def converter() -> Any:
    """Import MXNet's ONNX converter."""
    runtime.mxnet()
    import mxnet.onnx

    return mxnet.onnx


def _facts(train: dict[str, Any], network: evaluation.TrainedNetwork, views: int) -> dict[str, Any]:
    """Collect what users of the model need to know, for the manifest and the metadata of the ONNX file."""
    details = train["details"]
    architecture = details["config"]["architecture"]
    return {
        "classes": evaluation.metrics.output_names(details["dataset"]["classes"], architecture["classes"]),
        "input": {"name": INPUT, "shape": ["N", 3, IMAGE_SIZE, IMAGE_SIZE], "layout": LAYOUT},
        "outputs": list(OUTPUTS),
        "normalisation": {**details["normalisation"], "where": "inside the graph: (images - mean) / std"},
        "views": views,
        "padding": network.padding,
        "trained_on": details["dataset"]["label"],
        "architecture": architecture,
        "weights_sha256": train["files"]["model.params"]["sha256"],
    }


def _write_mxnet(network: evaluation.TrainedNetwork, folder: Path) -> None:
    """Write `model-symbol.json` and `model-0000.params`: the network with the normalisation in front of it."""
    mx = runtime.mxnet()
    images = mx.sym.var(INPUT)
    # `Module.bind` gets only the shape of the images, from which these shapes cannot be inferred.
    scale, shift = (mx.sym.var(f"normalisation_{name}", shape=(1, CHANNELS, 1, 1)) for name in ("scale", "shift"))
    values = mx.sym.broadcast_add(mx.sym.broadcast_mul(images, scale, name="scaled"), shift, name="normalised")
    logits = mx.sym.identity(network.net(values), name=OUTPUTS[0])
    symbol = mx.sym.Group([logits, mx.sym.softmax(logits, axis=-1, name=OUTPUTS[1])])
    arrays = {name: parameter.data() for name, parameter in network.net.collect_params().items()}
    mean, std = (np.array(value).reshape(1, 3, 1, 1) for value in (network.norm.mean, network.norm.std))
    # (x - mean) / std, with the same rounding as in training: one multiplication, one addition.
    arrays["normalisation_scale"] = mx.nd.array(1 / std)
    arrays["normalisation_shift"] = mx.nd.array(-mean / std)
    learned = {name: arrays[name] for name in symbol.list_arguments() if name != INPUT}
    running = {name: arrays[name] for name in symbol.list_auxiliary_states()}
    mx.model.save_checkpoint(str(folder / "model"), 0, symbol, learned, running)


def _write_onnx(folder: Path, facts: dict[str, Any]) -> None:
    """Convert the MXNet files in `folder` to `model.onnx`, with named dimensions and without no-ops."""
    path, shape, helper = folder / "model.onnx", (3, IMAGE_SIZE, IMAGE_SIZE), onnx.helper
    symbol, weights = str(folder / "model-symbol.json"), str(folder / "model-0000.params")
    named = {"dynamic": True, "dynamic_input_shapes": [("N", *shape)]}
    try:
        converter().export_model(symbol, weights, [(1, *shape)], np.float32, str(path), **named)
        converted = onnx.load(str(path)).graph
    except ValueError as error:  # protocol buffers are limited to 2 GiB
        raise PipelineError(f"the network is too large for one ONNX file: {error}") from error

    def tensor_info(name: str, *sizes: int) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *sizes])

    name = facts["architecture"]["name"]
    nodes = _without_identities(converted.node)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        name,
        # Without the weights, which a caller could override: onnxruntime would warn, and could not fold them.
        inputs=[tensor_info(INPUT, *shape)],
        outputs=[tensor_info(output, len(facts["classes"])) for output in OUTPUTS],
        initializer=[tensor for tensor in converted.initializer if tensor.name in used],
    )
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="mxnet",
        producer_version=runtime.mxnet().__version__,
        doc_string=f"{name}, trained on {facts['trained_on']}. Input: {LAYOUT}.",
    )
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _without_identities(nodes: Iterable[Any]) -> list[Any]:
    """Drop the Identity nodes (dropout at inference) and merge the names at their ends, keeping those of outputs."""
    kept: list[Any] = []
    renamed: dict[str, str] = {}
    for node in nodes:
        if node.op_type != "Identity":
            kept.append(node)
            continue
        before, after = renamed.get(node.input[0], node.input[0]), node.output[0]
        if after in OUTPUTS:
            renamed |= {name: after for name, other in renamed.items() if other == before} | {before: after}
        else:
            renamed[after] = before
    for node in kept:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    return kept


def _check(
    folder: Path, network: evaluation.TrainedNetwork, data: dataset.Dataset, reporter: Reporter
) -> dict[str, Any]:
    """Compare the written models with the trained network on test images. Raises `PipelineError` if they differ."""
    every = -(-len(data.test_labels) // _CHECKED)
    images, labels = data.test_images[::every], np.asarray(data.test_labels)[::every]
    (expected,) = network.logits(images)
    model = dataclasses.replace(onnx_runner.open_model(folder / "model.onnx"), views=1)
    started = time.monotonic()
    logits = model.logits(
        images, lambda done: reporter.progress(done / len(images), f"{done:,} of {len(images):,} images checked")
    )
    seconds = time.monotonic() - started
    check: dict[str, Any] = {
        "images": len(labels),
        "max_difference": float(np.abs(logits - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "top1_identical": int((logits.argmax(1) == expected.argmax(1)).sum()),
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "mxnet_max_difference": _check_mxnet(folder, images[:250], expected[:250]),
        "onnxruntime_images_per_second": round(len(labels) / seconds, 1),
    }
    tolerance = _TOLERANCE * max(1.0, check["largest_logit"])
    for name, key in (("model.onnx", "max_difference"), ("model-symbol.json", "mxnet_max_difference")):
        if not check[key] <= tolerance:
            differs = f"its logits differ from the trained network's by up to {check[key]:.3g}"
            raise PipelineError(f"{name}: {differs}, allowed {tolerance:.3g}")
    return check


def _check_mxnet(folder: Path, images: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of a logit between the exported MXNet files and the trained network."""
    mx = runtime.mxnet()
    values = mx.nd.array(np.asarray(images).astype(np.float32) / np.float32(255))
    try:
        symbol, parameters = str(folder / "model-symbol.json"), str(folder / "model-0000.params")
        block = mx.gluon.SymbolBlock.imports(symbol, [INPUT], parameters)
        logits = block(values)[0].asnumpy()
    except RuntimeError as error:
        raise PipelineError(f"model-symbol.json: MXNet cannot load the exported model: {cause(error)}") from error
    return float(np.abs(logits - expected).max())


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Create a folder in `folder` for unfinished files and remove it afterwards, as well as those of killed exports."""
    folder.mkdir(parents=True, exist_ok=True)
    for debris in folder.glob(".export-*"):
        shutil.rmtree(debris, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
        yield Path(name)
