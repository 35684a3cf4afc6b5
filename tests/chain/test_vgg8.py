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
    blocks = json.loads((chain.folder("report") / "report.json").read_text())["architecture"]["blocks"]
    assert [block["name"] for block in blocks] == ["Stem", "Block 1", "Block 2", "Global max pool", "Output"]
    assert blocks[0]["layers"] == ["whitening conv 2×2, 8 channels", "GELU"]
    assert blocks[1]["layers"][:4] == ["conv 3×3, 4 channels", "max pool 2×2", "batch norm", "GELU"]
    assert [tuple(block["output"]) for block in blocks] == [(8, 31, 31), (4, 15, 15), (8, 7, 7), (8, 1, 1), (10,)]

    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "red.png")
    command = [sys.executable, "-m", "pipeline.predict", "--model", str(chain.workspace), "red.png"]
    told = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert (told.returncode, "red.png" in told.stdout) == (0, True), told.stderr

    stem = weights.read(chain.folder("train") / "model.params")["0.0.weight"]
    assert np.array_equal(stem[::2], -stem[1::2]), "the stem is not trained"
    chain.configure(training__init_from=str(chain.folder("train") / "model.params"), architecture__name="again")
    assert chain.luigi("TrainVGG").rc == 0
    assert np.array_equal(weights.read(chain.folder("train") / "model.params")["0.0.weight"], stem)
