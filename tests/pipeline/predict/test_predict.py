"""Predictions for image files of every kind, with every way to specify a model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from luigi_runs import CLASSES, SmallChain, clean_environment
from PIL import Image

from pipeline import config, dataset, predict
from pipeline.files import write_json
from pipeline.retraining import served
from pipeline.text import printable


@pytest.fixture(scope="module")
def pixels(finished: SmallChain) -> np.ndarray:
    """The test images, (60, 32, 32, 3) uint8."""
    folder = finished.chain().dataset_folder()
    assert folder is not None
    return np.asarray(dataset.load(folder).test_images).transpose(0, 2, 3, 1)


@pytest.fixture
def folder(pixels: np.ndarray, tmp_path: Path) -> Path:
    """The test images as PNG files."""
    made = tmp_path / "images"
    made.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(made / f"{number:03}.png")
    return made


@pytest.fixture(scope="module")
def run(finished: SmallChain) -> Path:
    return finished.folder("export").parent


def predict_json(capsys: pytest.CaptureFixture[str], *arguments: Any, expected: int = 0) -> tuple[dict[str, Any], str]:
    """Return the command's --json output and its standard error."""
    status = predict.main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert status == expected, captured.err
    return json.loads(captured.out), captured.err


def refused(capfd: pytest.CaptureFixture[str], model: Path, *arguments: Any) -> str:
    """Return the one line on standard error with which the command refuses a model or image; it prints nothing else."""
    assert predict.main(["--model", str(model), *map(str, arguments)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("vgg-predict: ")
    return line.removeprefix("vgg-predict: ")


# --- images -------------------------------------------------------------------------------------------------------


def test_predictions_for_a_folder_match_the_evaluation(
    run: Path, folder: Path, finished: SmallChain, capsys: pytest.CaptureFixture[str]
) -> None:
    value, errors = predict_json(capsys, "--model", run, folder)
    with np.load(finished.folder("evaluate") / "predictions.npz") as file:
        expected, probabilities = file["predictions"], file["probabilities"]
    assert value["classes"] == CLASSES
    assert [Path(item["file"]).name for item in value["predictions"]] == [f"{number:03}.png" for number in range(60)]
    assert [item["class"] for item in value["predictions"]] == [CLASSES[index] for index in expected]
    for item, row in zip(value["predictions"], probabilities, strict=True):
        assert item["probabilities"][item["class"]] == item["probability"] == pytest.approx(row.max(), abs=1e-5)
        assert list(item["probabilities"].values()) == sorted(item["probabilities"].values(), reverse=True)
        assert sum(item["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert item["resized_from"] is None
    assert "warning" not in errors


def test_a_model_of_several_views_predicts_like_its_evaluation(
    done: SmallChain, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done.configure(evaluation__tta=6)
    assert done.report().ran == ["evaluate", "export", "report"]
    value, _ = predict_json(capsys, "--model", done.folder("export").parent, folder)
    assert value["views"] == 6
    with np.load(done.folder("evaluate") / "predictions.npz") as file:
        probabilities = file["probabilities"]
    for item, row in zip(value["predictions"], probabilities, strict=True):
        assert item["probability"] == pytest.approx(row.max(), abs=1e-5)


def test_the_table_names_file_class_probability_and_the_next_class(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main(["--model", str(run), str(folder / "000.png"), str(folder / "001.png")]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "class", "probability", "runner-up"]
    assert first.split()[0].endswith("000.png")
    assert second.split()[1] in CLASSES
    assert "%" in second


def test_other_sizes_are_resized_with_one_warning_and_not_squashed(
    run: Path, pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("wide", (640, 320)), ("high", (33, 400)), ("dot", (1, 1))):
        Image.fromarray(pixels[0]).resize(size).save(tmp_path / f"{name}.jpg")
    Image.fromarray(pixels[0]).save(tmp_path / "exact.png")
    value, errors = predict_json(capsys, "--model", run, tmp_path)
    sizes = {Path(item["file"]).stem: item["resized_from"] for item in value["predictions"]}
    assert sizes == {"wide": [640, 320], "high": [33, 400], "dot": [1, 1], "exact": None}
    (warning,) = [line for line in errors.splitlines() if "warning" in line]
    assert "resized to 32x32" in warning
    assert "and 2 more" in warning


def test_unreadable_files_are_named_and_the_rest_is_classified(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "note.png").write_text("not an image")
    (folder / "empty.png").touch()
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    value, errors = predict_json(capsys, "--model", run, folder, expected=1)
    assert {Path(item["file"]).name for item in value["unreadable"]} == {"note.png", "empty.png", "cut.png"}
    assert len(value["predictions"]) == 60
    assert all(item["why"] and item["why"] in errors for item in value["unreadable"])
    assert "Traceback" not in errors


def test_damaged_image_metadata_is_ignored(run: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg", exif=turned.tobytes()[:-4])
    command = [sys.executable, "-m", "pipeline.predict", "--model", str(run / "export/model.onnx"), "photo.jpg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=clean_environment())
    assert done.stderr == ""
    assert "photo.jpg" in done.stdout


def test_other_files_in_a_folder_are_skipped(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "labels.csv").write_text("a,b")
    (folder / ".hidden.png").write_text("x")
    (folder / "deeper").mkdir()
    (folder / "000.png").rename(folder / "deeper" / "000.PNG")
    (folder / "deeper" / "photo.HEIC").write_bytes(b"x")
    value, errors = predict_json(capsys, "--model", run, folder)
    assert len(value["predictions"]) == 60
    assert value["skipped"] == [str(folder / "deeper" / "photo.HEIC"), str(folder / "labels.csv")]
    assert "vgg-predict: 2 files skipped: 1 .heic, 1 .csv" in errors.splitlines()


def test_a_missing_path_does_not_stop_the_others(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, empty = tmp_path / "nowhere.png", tmp_path / "empty"
    empty.mkdir()
    value, errors = predict_json(capsys, "--model", run, missing, folder / "000.png", empty, expected=1)
    assert [item["file"] for item in value["predictions"]] == [str(folder / "000.png")]
    assert {item["file"]: item["why"] for item in value["unreadable"]} == {
        str(missing): "no such file or folder",
        str(empty): "no image files in this folder",
    }
    assert f"vgg-predict: {missing}: no such file or folder" in errors.splitlines()
    assert predict.main(["--model", str(run), str(missing)]) == 1
    assert capsys.readouterr().out == "", "no table without a row"


def test_linked_folders_are_named_and_can_be_passed_directly(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = tmp_path / "eval" / "cat"
    linked.parent.mkdir()
    linked.symlink_to(folder)
    assert predict.main(["--model", str(run), str(linked.parent)]) == 1
    message = f"1 linked folder not followed (give each by name): {linked}"
    assert f"{linked.parent}: no image files in this folder ({message})" in capsys.readouterr().err
    shutil.copy(folder / "000.png", linked.parent)
    value, errors = predict_json(capsys, "--model", run, linked.parent)
    assert (len(value["predictions"]), value["skipped"]) == (1, [str(linked)])
    assert f"vgg-predict: {message}" in errors.splitlines()
    assert len(predict_json(capsys, "--model", run, linked)[0]["predictions"]) == 60


def test_a_folder_that_cannot_be_entered_does_not_stop_the_rest(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "locked").mkdir()
    (folder / "000.png").rename(folder / "locked" / "000.png")
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:  # root may enter every folder
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    value, _ = predict_json(capsys, "--model", run, folder, expected=1)
    assert len(value["predictions"]) == 59
    assert [item["why"] for item in value["unreadable"]] == ["cannot be read: Permission denied"]


def test_terminal_codes_in_a_file_name_are_printed_harmlessly(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "000.png").rename(folder / "a\n\x1b[31mred.png")
    assert predict.main(["--model", str(run), str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 61


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_a_path_without_images_is_one_clear_line(
    run: Path, tmp_path: Path, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(capfd, run / "export/model.onnx", tmp_path / path).startswith(f"{tmp_path / path}: no ")


# --- models -------------------------------------------------------------------------------------------------------


def test_a_run_its_export_a_workspace_and_the_file_itself_name_the_same_model(run: Path, finished: SmallChain) -> None:
    model = run / "export" / "model.onnx"
    for path in (run, run / "export", model, finished.workspace):
        assert predict.resolve_model(path) == model


def promote(chain: SmallChain, weights: str, architecture: str = "tiny") -> Path:
    """Make the finished run the current model, like the promotion gate does."""
    run = chain.chain().run()
    assert run is not None
    path = run.workspace.root / "current" / "mini" / f"{architecture}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"run": run.place, "generation": "2026-W48", "weights_sha256": weights, "accuracy": 0.5}
    write_json(path, {**entry, "architecture": "0" * 64, "since": "2026-11-25T08:00:00Z"})
    return path


def test_the_current_model_of_a_workspace_takes_precedence_over_the_newest(
    done: SmallChain, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    current = done.folder("export").parent
    newer = current.with_name(f"{current.name}@2099-W01")
    shutil.copytree(current, newer)
    exported = json.loads((newer / "export" / "manifest.json").read_text())
    write_json(newer / "export" / "manifest.json", {**exported, "created": "2099-01-01T00:00:00Z"})
    assert predict.resolve_model(done.workspace) == newer / "export" / "model.onnx"
    pointer = promote(done, done.manifest("train")["files"]["model.params"]["sha256"])
    assert predict.resolve_model(done.workspace) == current / "export" / "model.onnx"
    assert predict.resolve_model(pointer) == current / "export" / "model.onnx"
    served.serve(done.chain().workspace, pointer)
    stable = served.folder(pointer)
    for named in (stable, stable.resolve(), stable / "model.onnx"):
        value, _ = predict_json(capsys, "--model", named, folder / "000.png")
        assert value["predictions"]
    (stable / "model.onnx").unlink()
    (stable / "model.onnx").write_bytes(b"damaged")
    assert predict.main(["--model", str(stable), str(folder)]) == 1
    assert "damaged; remove it, then run `luigi --module tasks Prune --confirm`" in capsys.readouterr().err


def test_an_export_of_other_weights_than_the_promoted_ones_is_refused(
    done: SmallChain, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    promote(done, "0" * 64)
    assert "exported from other weights" in refused(capfd, done.workspace, folder)


def test_several_current_models_require_a_choice(
    done: SmallChain, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = done.manifest("train")["files"]["model.params"]["sha256"]
    promote(done, weights)
    chosen = promote(done, weights, "other")
    line = refused(capfd, done.workspace, folder)
    assert "several models are current" in line
    assert str(chosen) in line
    assert predict.main(["--model", str(chosen), str(folder)]) == 0


def test_a_damaged_model_is_refused(done: SmallChain, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = done.folder("export") / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert "model.onnx: damaged" in refused(capfd, model.parent.parent, folder)


@pytest.mark.parametrize(
    ("content", "size", "words"),
    [
        (b"", 0, "not a usable ONNX model"),
        (b"no model at all", 15, "not a usable ONNX model"),
        (b"", 1 << 40, "is 2 GiB or larger, which no ONNX model can be"),
    ],
    ids=["empty", "text", "holes"],
)
def test_a_file_that_is_not_a_model_is_one_clear_line(
    tmp_path: Path, folder: Path, content: bytes, size: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    os.truncate(path, size)
    assert refused(capfd, path, folder).startswith(f"{path}: {words}")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("classes", "[" * 100_000, "an ONNX model, but not exported by this pipeline"),
        ("classes", '"airplanes!"', "classes: expected a list of names"),
        ("classes", json.dumps(["cat"] * 10), "classes: duplicate names"),
        ("classes", '["cat", "dog"]', "returns logits of shape (60, 10) for 60 images and 2 class names"),
        ("classes", "[", "an ONNX model, but not exported by this pipeline"),
        ("views", "5", "an ONNX model, but not exported by this pipeline (views 5)"),
        ("views", "many", "an ONNX model, but not exported by this pipeline"),
    ],
)
def test_metadata_that_do_not_match_the_model_are_one_clear_line(
    run: Path, folder: Path, tmp_path: Path, key: str, value: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = edited(run, tmp_path, **{key: value})
    line = refused(capfd, path, folder)
    assert line.startswith(f"{path}: ")
    assert words in line


def test_terminal_codes_in_class_names_are_printed_harmlessly(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = [f"\x1b]0;title\x07\u202e{number}" for number in range(9)]
    path = edited(run, tmp_path, classes=json.dumps([*hostile, "\ud800"]), trained_on=config.SAMPLE_LABEL)
    assert predict.main(["--model", str(path), str(folder)]) == 0
    captured = capsys.readouterr()
    assert printable(captured.out + captured.err, lines=True) == captured.out + captured.err
    assert "?]0;title??" in captured.out
    value, _ = predict_json(capsys, "--model", path, folder)
    assert set(value["classes"]) == {*hostile, "\ud800"}


def test_a_model_of_the_drawn_shapes_says_so_first(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(run, tmp_path, trained_on=config.SAMPLE_LABEL)
    assert predict.main(["--model", str(path), str(folder / "000.png")]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("vgg-predict: this model was trained on drawn shapes (bundled sample, not CIFAR-10)")
    assert "airplane, " in first
    value, errors = predict_json(capsys, "--model", path, folder / "000.png")
    assert next(iter(value.items())) == ("trained_on", "bundled sample, not CIFAR-10")
    assert errors.splitlines()[0] == first
    value, errors = predict_json(capsys, "--model", run, folder / "000.png")
    assert value["trained_on"] == "mini, not the official archive"
    assert "drawn shapes" not in errors


def test_a_model_that_returns_nan_is_one_clear_line(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(run / "export" / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.nan, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    assert "returns logits that are not finite" in refused(capfd, tmp_path / "nan.onnx", folder, "--json")


def test_an_operator_name_that_is_not_utf_8_is_one_clear_line(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bytes.onnx"
    path.write_bytes((run / "export" / "model.onnx").read_bytes().replace(b"Conv", b"Con\xff"))
    assert refused(capfd, path, folder, "--json").startswith(f"{path}: ")


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "inside.bin"])
@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_a_model_cannot_read_other_files(
    folder: Path, tmp_path: Path, location: str, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inside.bin").write_bytes(bytes(40))
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[10])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = small_model(tmp_path, tensor, where)
    message = f"{path}: stores values in other files, which are not read; save the model as one file"
    assert refused(capfd, path, folder) == message


@pytest.mark.parametrize("what", ["loop", "branch", "function"])
def test_a_model_that_could_run_for_ever_is_not_run(
    folder: Path, tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    helper, numbers = onnx.helper, onnx.TensorProto
    round_of = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("go", "x")],
        "round",
        [
            helper.make_tensor_value_info(*value, [])
            for value in (("i", numbers.INT64), ("go", numbers.BOOL), ("x", numbers.FLOAT))
        ],
        [helper.make_tensor_value_info(*value, []) for value in (("go_out", numbers.BOOL), ("x_out", numbers.FLOAT))],
    )
    nodes = {
        "loop": [helper.make_node("Loop", ["w", "", "images"], ["logits"], body=round_of)],
        "branch": [helper.make_node("If", ["w"], ["logits"], then_branch=round_of, else_branch=round_of)],
        "function": [],
    }
    rounds = onnx.numpy_helper.from_array(np.array(2**62, np.int64), "w")
    path = small_model(tmp_path, rounds, "initializer", *nodes[what])
    if what == "function":
        model = onnx.load(path)
        model.functions.add(name="f", domain="d")
        onnx.save(model, path)
    message = f"{path}: has loops, branches or functions, which are not run; export it again"
    assert refused(capfd, path, folder) == message


@pytest.mark.parametrize("constant", [False, True])
def test_a_small_model_with_huge_matrix_products_is_stopped(
    folder: Path, tmp_path: Path, constant: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict.onnx_runner, "BATCH_SECONDS", 0.5)
    node = onnx.helper.make_node
    shape = onnx.numpy_helper.from_array(np.array([2048, 2048] if constant else [-1, 2048], np.int64), "w")
    start = [
        node("Reshape", ["images", "w"], ["x"]),
        node("Transpose", ["x"], ["y"]),
        node("MatMul", ["y", "x"], ["m0"]),
    ]
    products = [node("MatMul", [f"m{number}"] * 2, [f"m{number + 1}"]) for number in range(1000)]
    end = node("Identity", ["m1000"], ["logits"])
    nodes = [node("ConstantOfShape", ["w"], ["m0"])] if constant else start
    path = small_model(tmp_path, shape, "initializer", *nodes, *products, end)
    for number in range(4, 60):
        (folder / f"{number:03}.png").unlink()
    message = f"{path}: cannot be run on these images (it takes more than 0.5 s)"
    assert refused(capfd, path, folder) == message


def test_a_model_that_declares_more_than_it_holds_stays_within_the_memory_limit(folder: Path, tmp_path: Path) -> None:
    shape = onnx.numpy_helper.from_array(np.array([5_000, 1_000_000], np.int64), "w")
    node = onnx.helper.make_node("ConstantOfShape", ["w"], ["\x1b[31mlogits"])
    path = small_model(tmp_path, shape, "initializer", node)
    command = [sys.executable, "-m", "pipeline.predict", "--model", str(path), str(folder / "000.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vgg-predict: {path}: not a usable ONNX model (")
    assert "\x1b" not in line


def edited(run: Path, folder: Path, **properties: str) -> Path:
    """Return a copy of the run's model with other metadata."""
    model = onnx.load(run / "export" / "model.onnx")
    known = {item.key: item.value for item in model.metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**known, **properties})
    onnx.save(model, folder / "edited.onnx")
    return folder / "edited.onnx"


def small_model(folder: Path, tensor: onnx.TensorProto, where: str, *nodes: onnx.NodeProto) -> Path:
    """Return a model with a tensor in one of the places where tensors can be."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    images = helper.make_tensor_value_info("images", float32, ["N", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", float32, None)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    made = list(nodes)
    if where == "attribute":
        made.append(constant)
    graph = helper.make_graph(made, "g", [images], [logits], [tensor] if where == "initializer" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_a_model_that_cannot_be_run_on_the_images_is_one_clear_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = onnx.numpy_helper.from_array(np.array([7, 7], np.int64), "w")
    reshape = onnx.helper.make_node("Reshape", ["images", "w"], ["logits"])
    path = small_model(tmp_path, shape, "initializer", reshape)
    assert refused(capfd, path, folder).startswith(f"{path}: cannot be run on these images (")


def test_an_error_in_luigi_cfg_exits_with_status_2(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "luigi.cfg").write_text("[vgg]\nworkspace = $NO_SUCH_PLACE/artifacts\n")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", str(tmp_path / "luigi.cfg"))
    assert predict.main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "[vgg] workspace: found '$NO_SUCH_PLACE/artifacts'" in line


def test_an_empty_path_is_not_the_working_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict.main([""])
    assert "found '', expected an image file or a folder" in capsys.readouterr().err


def test_a_missing_model_says_what_to_pass(tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "a run's folder, a workspace, or an .onnx file" in refused(capfd, tmp_path / "nowhere", folder)
    assert "no exported model here" in refused(capfd, folder, folder)


def test_an_unreachable_store_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--model", "ftp://host.invalid/models", str(folder)]) == 1
    assert "vgg-predict: ftp://host.invalid/models: " in capfd.readouterr().err


def test_an_unusable_address_names_the_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--model", "https://localhost/vgg/model.onnx", str(folder)]) == 2
    assert "--model https://localhost/vgg/model.onnx: a workspace needs" in capsys.readouterr().err


def test_neither_mxnet_nor_luigi_is_needed(run: Path, folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('mxnet', 'luigi', 'matplotlib'): sys.modules[name] = None\n"
        "from pipeline import predict\n"
        "sys.exit(predict.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--model", str(run), str(folder / "000.png"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["class"] in CLASSES


def test_a_file_that_is_no_model_is_not_called_a_damaged_pointer(run: Path, folder: Path, capsys) -> None:
    other = run / "other.json"
    other.write_text("{}")
    for model, words in ((str(other), "other.json: not a model; --model takes"), ("", "--model: is empty")):
        assert predict.main(["--model", model, str(folder)]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_a_closed_pipe_is_not_an_error(run: Path, folder: Path) -> None:
    code = "import sys; from pipeline import predict; sys.exit(predict.main())"
    command = [sys.executable, "-c", code, "--model", str(run), *[str(folder)] * 50]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert b"Traceback" not in errors


def test_a_large_folder_is_printed_block_by_block_until_ctrl_c(run: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pipeline.predict", "--model", str(run), *[str(folder)] * 500]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(), text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("file ")
        process.send_signal(signal.SIGINT)
        lines, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert lines.count("\n") < 30_000
    assert "Traceback" not in errors
