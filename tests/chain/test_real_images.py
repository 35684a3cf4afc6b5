"""The chain on the real images of CIFAR-10, where the folder that CIFAR10_DATA_DIR names can build their archive.

The archive is built from JPEG copies of the images: it is not the official one, and must never be taken for it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from luigi_runs import SmallChain, run

from pipeline.files import read_json

FOLDER = os.environ.get("CIFAR10_DATA_DIR", "")
BUILDER = "build_cifar10_archive.py"

pytestmark = pytest.mark.skipif(
    not FOLDER or not (Path(FOLDER) / BUILDER).is_file(),
    reason=f"needs the real images: CIFAR10_DATA_DIR is not a folder with {BUILDER}",
)

#: A narrow network for one epoch: enough to tell learning from guessing in seconds.
CONFIG = {
    "data": {"name": "cifar10"},
    "architecture": {
        "name": "vgg-narrow",
        "conv_arch": [[1, 8], [1, 16], [1, 32], [1, 32]],
        "batch_norm": True,
        "dense": [],
    },
    "training": {
        "epochs": 1,
        "validation_images": 25_000,
        "batch_size": 128,
        "optimizer": "nag",
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
        "normalize": True,
        "initializer": "he",
        "schedule": {"kind": "triangle", "peak": 0.25},
    },
    "device": "cpu",
}

#: Guessing gives 0.10; this epoch of half of the images gave 0.5611 (one run, JPEG copy of the images).
FLOOR = 0.40


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    built = run([sys.executable, str(Path(FOLDER) / BUILDER), str(folder)], folder)
    assert built.rc == 0, built.text
    (path,) = folder.rglob("cifar-10-binary.tar.gz")
    return path


def test_one_epoch_on_the_real_images_learns_and_is_not_called_the_official_archive(archive, tmp_path):
    chain = SmallChain(tmp_path / "chain", archive, CONFIG)
    assert chain.config.read_text().count("source") == 0, "the source comes from the environment alone"
    result = chain.report(CIFAR10_SOURCE=str(archive))
    assert result.ran == ["dataset", "train", "evaluate", "export", "report"]
    assert "not the official archive" in result.log
    (path,) = chain.workspace.glob("runs/cifar10-*/vgg-narrow-*/report/report.json")
    report = read_json(path)
    assert report["dataset"]["train_images"] == 50_000
    assert report["dataset"]["test_images"] == 10_000
    assert report["dataset"]["sample"] is False
    made = chain.workspace / "datasets" / path.parts[-4]
    details = read_json(made / "manifest.json")["details"]
    assert details["label"] == "cifar10, not the official archive"
    assert (details["train_per_class"], details["test_per_class"]) == ([5000] * 10, [1000] * 10)
    assert np.load(made / "train_images.npy", mmap_mode="r").shape == (50_000, 3, 32, 32)
    assert "not the official archive" in report["dataset"]["label"]
    assert "not the official archive" in path.with_name("index.html").read_text()
    assert report["evaluation"]["accuracy"] > FLOOR
    assert sum(map(sum, report["evaluation"]["confusion"])) == 10_000
