"""The model that services load: the stable path always leads to an intact model, and to the current one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from generation_runs import current, make, make_current, pointer_of
from luigi_runs import CHECKOUT, SmallChain, clean_environment
from PIL import Image

from pipeline.dataset import image_files
from pipeline.errors import PipelineError
from pipeline.evaluation import read_predictions
from pipeline.retraining import registry, retention, rollback, served, trash
from pipeline.verify import verify
from pipeline.workspace import Workspace

#: Reads what a service would, over and over until its standard input closes. Prints how often, or what was wrong.
READER = """
import hashlib, json, select, sys
from pathlib import Path
stable, turns = Path(sys.argv[1]), 0
model = str(stable / "model.onnx")
print("reading", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(200):  # without a pause, to catch even the shortest gap
        with open(model, "rb", buffering=0) as file:
            content = file.read()
        assert content in (b"exported from 2026-W41", b"exported from 2026-W42"), content
        turns += 1
    at_once = stable.resolve()
    manifest = json.loads((at_once / "manifest.json").read_text())
    for path in (at_once / "model.onnx", at_once / manifest["model"]):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest["files"]["model.onnx"]["sha256"]
print(turns)
"""


@pytest.fixture
def two(done: SmallChain) -> SmallChain:
    """A chain with two generations; the second one is current and served."""
    make(done, "2026-W41")
    make(done, "2026-W42")
    served.serve(done.chain().workspace, pointer_of(done))
    return done


def stable_of(small: SmallChain) -> Path:
    return small.workspace / "current/mini/tiny"


def promote(workspace: Workspace, path: Path, turn: int) -> None:
    """Make one of the two generations current and serve it, in turns."""
    pointer = registry.read(path)
    assert pointer
    (entry,) = (item for item in (pointer.entry, *pointer.before) if item.generation == f"2026-W4{1 + turn % 2}")
    with registry.held(workspace, path):
        registry.set_current(path, msgspec.structs.replace(entry, since=f"2030-01-01T00-{turn}"))
        served.serve(workspace, path)


def served_generation(small: SmallChain) -> str:
    """Check the files at the stable path and return their generation."""
    stable = stable_of(small)
    about = json.loads((stable / "manifest.json").read_text())
    content = (stable / about["model"]).read_bytes()
    assert content == (stable / "model.onnx").read_bytes()
    assert hashlib.sha256(content).hexdigest() == about["files"]["model.onnx"]["sha256"]
    assert served.damage(small.chain().workspace, pointer_of(small)) == []
    generation: str = about["generation"]
    return generation


def test_a_reader_always_finds_an_intact_model_during_200_promotions(
    two: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and not under test
    workspace, path = two.chain().workspace, pointer_of(two)
    command = [sys.executable, "-c", READER, str(stable_of(two))]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout
    assert reader.stdout.readline() == "reading\n"
    for turn in range(200):
        promote(workspace, path, turn)
        assert reader.poll() is None, reader.communicate()[1]
    output, problem = reader.communicate()
    assert problem == ""
    assert int(output) >= 200
    assert served_generation(two) == "2026-W42"


def test_promotion_rollback_and_retirement_switch_the_stable_path(two: SmallChain) -> None:
    workspace = two.chain().workspace
    assert served_generation(two) == "2026-W42"
    rollback.roll_back(two.chain())
    assert served_generation(two) == "2026-W41"
    pointer = rollback.retire(workspace, "mini/tiny")
    assert not stable_of(two).parent.exists() or os.listdir(stable_of(two).parent) == []
    assert pointer.exists()
    (item,) = trash.items(workspace)
    trash.restore(workspace, item)
    assert served_generation(two) == "2026-W41"


def test_the_model_outlives_its_run_and_the_workspace_can_be_moved(two: SmallChain, tmp_path: Path) -> None:
    shutil.rmtree(two.workspace / "runs")
    shutil.copytree(two.workspace, tmp_path / "copied", symlinks=True)
    two.workspace.rename(tmp_path / "moved")
    for place in ("copied", "moved"):
        assert (tmp_path / place / "current/mini/tiny/model.onnx").read_text() == "exported from 2026-W42"


def test_prune_serves_a_workspace_of_an_earlier_version_and_repairs_damage(two: SmallChain) -> None:
    workspace = two.chain().workspace
    for path in stable_of(two).parent.glob("tiny[!.]*"):
        shutil.rmtree(path)
    stable_of(two).unlink()
    assert served.damage(workspace, pointer_of(two)) == []
    retention.prune(two.chain(), [])
    assert served_generation(two) == "2026-W42"
    for name, content in (("model.onnx", "damaged"), ("manifest.json", "[]"), ("manifest.json", '{"files": []}')):
        version = stable_of(two).resolve()
        (version / name).unlink()
        (version / name).write_text(content)
        (line,) = (line for line in verify(workspace).damaged if line.startswith("current/"))
        assert line.startswith(
            f"current/mini/{version.name}: damaged; remove it, then run `luigi --module tasks Prune --c"
        )
        shutil.rmtree(version) if content == "[]" else (version / name).unlink()
        retention.prune(two.chain(), [])
        assert served_generation(two) == "2026-W42"


def test_verify_reports_that_services_load_another_model_than_the_current_one(two: SmallChain) -> None:
    workspace, path = two.chain().workspace, pointer_of(two)
    assert not any(line.startswith("current/") for line in verify(workspace).unfinished)
    pointer = registry.read(path)
    assert pointer
    registry.withdraw(path, pointer.before[0])  # a command that was killed before it served the model
    (line,) = (line for line in verify(workspace).unfinished if line.startswith("current/"))
    old, new = (two.run(generation).place for generation in ("2026-W42", "2026-W41"))
    assert line == f"current/mini/tiny: services load {old}, but {new} is current; the next Retrain makes it available"


def test_a_model_left_empty_by_a_power_failure_is_served_again(two: SmallChain) -> None:
    model = (stable_of(two) / "model.onnx").resolve()
    model.unlink()  # do not write through the hard link to the run's own file
    model.write_bytes(b"")
    served.serve(two.chain().workspace, pointer_of(two))
    assert served_generation(two) == "2026-W42"


def test_former_versions_are_deleted_an_hour_after_they_were_replaced(two: SmallChain) -> None:
    for turn in (0, 1):
        promote(two.chain().workspace, pointer_of(two), turn)
    versions = set(stable_of(two).parent.glob("tiny@*"))
    assert len(versions) == 3
    for path in versions:
        os.utime(path, (time.time() - 3700,) * 2)
    promote(two.chain().workspace, pointer_of(two), 2)
    assert len(set(stable_of(two).parent.glob("tiny@*")) & versions) == 1, "the one that was current until now"


def test_without_links_two_files_are_replaced_and_the_manifest_names_its_own_model(
    two: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*about: object) -> None:
        raise PermissionError("no links here")

    shutil.copytree(stable_of(two), two.root / "as-folder")
    stable_of(two).unlink()
    (two.root / "as-folder").rename(stable_of(two))
    with monkeypatch.context() as without:
        without.setattr(os, "symlink", refuse)
        without.setattr(os, "link", refuse)
        rollback.roll_back(two.chain(), "2026-W41")
        assert served_generation(two) == "2026-W41"
        rollback.roll_back(two.chain(), "2026-W42")
    assert served_generation(two) == "2026-W42"
    rollback.roll_back(two.chain(), "2026-W41")
    assert served_generation(two) == "2026-W41", "a folder stays a folder"
    assert sorted(path.name for path in stable_of(two).iterdir()) == ["manifest.json", "model.onnx"]


def test_a_rollback_to_a_model_that_cannot_be_served_changes_nothing(two: SmallChain) -> None:
    run = two.run("2026-W41")
    (run.stage("export") / "model.onnx").write_text("exported from 2026-W40")
    with pytest.raises(PipelineError, match=r"W41/export/model.onnx is damaged; remove .*Export --generation 2026-W41"):
        rollback.roll_back(two.chain())
    shutil.rmtree(run.stage("export"))
    with pytest.raises(PipelineError, match=r"W41 is not exported .*Export --generation 2026-W41"):
        rollback.roll_back(two.chain())
    assert current(two).generation == served_generation(two) == "2026-W42"


def test_the_example_in_the_readme_classifies_an_image_as_the_evaluation_did(done: SmallChain) -> None:
    make_current(done, done.run())
    served.serve(done.chain().workspace, pointer_of(done))
    image = np.load(done.folder("dataset") / "test_images.npy")[3]
    Image.fromarray(image.transpose(1, 2, 0)).save(done.cwd / "cat.png")
    text = (CHECKOUT / "tasks" / "README.md").read_text()
    (lines,) = re.findall(r"```python\n((?:(?!```).)*onnxruntime.*?)```", text, re.DOTALL)
    assert len(lines.splitlines()) <= 16
    lines = lines.replace('"artifacts/current/cifar10/vgg11"', repr(str(stable_of(done))))
    shown = subprocess.run(
        [sys.executable, "-c", lines], cwd=done.cwd, env=clean_environment(), capture_output=True, text=True, check=True
    )
    name, probability = shown.stdout.split()
    arrays = read_predictions(done.folder("evaluate") / "predictions.npz")
    assert name == json.loads((stable_of(done) / "manifest.json").read_text())["classes"][arrays["predictions"][3]]
    assert 0.1 <= float(probability) <= 1
    # Other images are prepared as by vgg-predict.
    noise = np.random.RandomState(0).randint(0, 256, (300, 400, 4), np.uint8)
    pictures = {"transparent.png": noise, "small.png": noise[:40, :50, :3], "large.jpg": noise[..., :3]}
    for file, pixels in pictures.items():
        Image.fromarray(pixels).save(done.cwd / file)
        check = "\nnumpy.save('pixels.npy', numpy.asarray(image).transpose(2, 0, 1))\n"
        code = lines.replace("cat.png", file) + check
        subprocess.run([sys.executable, "-c", code], cwd=done.cwd, env=clean_environment(), check=True)
        expected = image_files.read(done.cwd / file, (32, 32))
        assert isinstance(expected, image_files.Picture)
        assert np.array_equal(np.load(done.cwd / "pixels.npy"), expected.pixels), file
