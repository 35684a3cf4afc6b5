"""The whole chain on an archive in CIFAR-100's layout: 100 classes that the configuration does not mention."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from luigi_runs import CONFIG, SmallChain, archive_of
from PIL import Image

from pipeline import doctor, predict
from pipeline.export import onnx_runner

NAMES = [f"kind {label}" for label in range(100)]


def records(each: int, seed: int) -> np.ndarray:
    """Records of 3,074 bytes, `each` of every class: a coarse label, a fine one, noise around a colour of the class."""
    labels = np.arange(100 * each) % 100
    colours = np.random.RandomState(1).randint(40, 216, (100, 3, 1))[labels]
    pixels = colours + np.random.RandomState(seed).randint(-9, 9, (len(labels), 3, 1024))
    return np.concatenate([labels[:, None] // 5, labels[:, None], pixels.reshape(-1, 3072)], 1).astype(np.uint8)


def test_a_chain_on_100_classes_takes_their_number_and_names_from_the_archive(tmp_path: Path) -> None:
    test = records(1, 2)
    names = "".join(f"{name}\n" for name in NAMES).encode()
    files = {"fine_label_names.txt": names, "train.bin": records(4, 1).tobytes(), "test.bin": test.tobytes()}
    chain = SmallChain(tmp_path / "chain", archive_of(tmp_path / "mini-100.tar.gz", files), CONFIG)
    assert doctor.needed_bytes(chain.chain()) > 400_000_000, "asked before there is a data set"
    assert chain.chain("2026-W48").run_id == "tiny@2026-W48", "no fingerprint yet"
    result = chain.report()
    assert "100 classes" in result.text

    architecture = chain.manifest("train")["details"]["config"]["architecture"]
    assert architecture["classes"] == 100
    assert chain.chain().run_id in result.text
    assert chain.status().count(" done ") == 5
    chain.configure(architecture__classes=100)
    assert chain.chain().complete("report"), "the same run when their number is given"

    report = json.loads((chain.folder("report") / "report.json").read_text())
    assert [row["class"] for row in report["evaluation"]["per_class"]] == NAMES
    assert "architecture.classes" not in [row["key"] for row in report["provenance"]["config"]]
    assert "Classes with the lowest recall" in (chain.folder("report") / "report.md").read_text()

    image = tmp_path / "image.png"
    Image.fromarray(test[7, 2:].reshape(3, 32, 32).transpose(1, 2, 0)).save(image)
    model = onnx_runner.open_model(chain.folder("export") / "model.onnx")
    assert model.classes == NAMES
    (prediction,) = predict.classify(model, [image])
    assert sorted(prediction.probabilities) == sorted(NAMES)
