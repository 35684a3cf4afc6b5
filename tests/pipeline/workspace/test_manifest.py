"""Manifests: when a stage is complete, and the reasons when it is not."""

from __future__ import annotations

import errno
import os

import pytest

from pipeline.errors import WorkspaceError
from pipeline.files import read_json, sha256_file, write_json
from pipeline.storage import Storage
from pipeline.workspace import manifest

INPUTS = {"dataset": "a" * 64, "model.params": "b" * 64}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "evaluate"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"accuracy": 0.5}')
    (folder / "predictions.npz").write_bytes(bytes(1000))
    manifest.write(folder, "evaluate", ("metrics.json", "predictions.npz"), INPUTS, {"run": "x"})
    return folder


def problems(folder, inputs=INPUTS):
    return manifest.problems(folder, "evaluate", inputs)


def test_a_finished_stage_has_no_problems_and_records_its_files_and_inputs(folder):
    assert problems(folder) == []
    value = manifest.read(folder)
    assert value["files"]["predictions.npz"] == {"size": 1000, "sha256": sha256_file(folder / "predictions.npz")}
    assert value["inputs"] == INPUTS
    assert value["version"] == manifest.STAGE_VERSIONS["evaluate"]
    assert manifest.digest(value, "metrics.json") == sha256_file(folder / "metrics.json")
    assert manifest.digest(value, "other") is None
    assert manifest.digest(None, "metrics.json") is None


def test_never_started_and_unfinished_stages_are_distinguished(folder, tmp_path):
    assert problems(tmp_path / "nowhere") == ["no result yet"]
    (folder / "manifest.json").unlink()
    assert problems(folder) == ["unfinished"]


def test_an_unreadable_manifest_raises_instead_of_repeating_the_stage(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/proc/self/mem")  # whose first byte is an input/output error
    with pytest.raises(WorkspaceError, match=r"manifest\.json: cannot read it: Input/output error"):
        problems(folder)


def test_an_inaccessible_file_raises_instead_of_repeating_the_stage(folder, monkeypatch):
    def refuse(storage, path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Storage, "size", refuse)
    with pytest.raises(WorkspaceError, match=r"metrics\.json: cannot access it: Stale file handle"):
        problems(folder)
    first, _ = manifest.damage(folder, manifest.read(folder))
    assert first == "evaluate/metrics.json cannot be read: Stale file handle"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 99, "files": {}}', "\x00" * 50])
def test_a_damaged_manifest_is_rejected(folder, content):
    (folder / "manifest.json").write_text(content)
    assert manifest.read(folder) is None
    assert problems(folder) == ["evaluate/manifest.json is damaged"]


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("files", {"metrics.json": None}),
        ("files", {"metrics.json": {"size": "12", "sha256": "a"}}),
        ("inputs", {"dataset": 7}),
        ("created", None),
        ("details", {"epochs": "many"}),
        ("details", {"config": {"training": None}}),
        ("details", {"segments": [{}]}),
    ],
)
def test_a_manifest_with_wrong_types_is_damaged(folder, part, content):
    value = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", {**value, part: content})
    assert manifest.read(folder) is None
    assert problems(folder) == ["evaluate/manifest.json is damaged"]


def test_missing_and_truncated_files_are_named(folder):
    (folder / "metrics.json").unlink()
    os.truncate(folder / "predictions.npz", 999)
    assert problems(folder) == [
        "evaluate/metrics.json is missing",
        "evaluate/predictions.npz has 999 B (999), its manifest says 1000",
    ]


def test_another_version_of_the_stage_is_named(folder):
    path = folder / "manifest.json"
    write_json(path, {**read_json(path), "version": 0})
    now = manifest.STAGE_VERSIONS["evaluate"]
    assert problems(folder) == [f"made by version 0 of this stage, which is now at version {now}"]


def test_changed_inputs_are_named(folder):
    assert problems(folder, {**INPUTS, "dataset": "c" * 64}) == ["the data set changed"]
    assert problems(folder, {**INPUTS, "dataset": None}) == ["the data set changed"]
    assert problems(folder, {**INPUTS, "more": "d"}) == ["new input: more"]


def test_a_flipped_bit_is_found_only_by_hashing(folder):
    content = bytearray((folder / "predictions.npz").read_bytes())
    content[500] ^= 1
    (folder / "predictions.npz").write_bytes(content)
    assert problems(folder) == []
    (found,) = manifest.damage(folder, manifest.read(folder))
    assert found.startswith("evaluate/predictions.npz is damaged")
