"""A network in the shape of vgg8.yaml through the whole chain: what holds for the other networks holds for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from luigi_runs import VGG8, SmallChain, clean_environment
from PIL import Image

from pipeline.model import weights


def test_trained_exported_reported_used_and_started_from(finished: SmallChain, tmp_path: Path) -> None:
    chain = SmallChain(tmp_path / "chain", finished.archive, {**VGG8, "evaluation": {"tta": 6}, "device": "cpu"})
    assert chain.report().rc == 0
    # The stage itself refuses an ONNX model that does not agree with MXNet's.
    check = chain.manifest("export")["details"]["check"]
    assert check["top1_identical"] == check["images"] == 60
    layers = json.loads((chain.folder("report") / "report.json").read_text())["architecture"]["layers"]
    assert [layer["kind"] for layer in layers[:3]] == ["whitening conv 2x2", "conv 3x3", "max pool 2x2"]
    assert [tuple(layer["output"]) for layer in layers[-2:]] == [(8, 1, 1), (10,)]

    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "red.png")
    command = [sys.executable, "-m", "pipeline.predict", "--model", str(chain.workspace), "red.png"]
    told = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert (told.returncode, "red.png" in told.stdout) == (0, True), told.stderr

    stem = weights.read(chain.folder("train") / "model.params")["0.0.weight"]
    assert np.array_equal(stem[::2], -stem[1::2]), "the stem is not trained"
    chain.configure(training__init_from=str(chain.folder("train") / "model.params"), architecture__name="again")
    assert chain.luigi("TrainVGG").rc == 0
    assert np.array_equal(weights.read(chain.folder("train") / "model.params")["0.0.weight"], stem)
