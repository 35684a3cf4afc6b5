"""Untrusted names never lead out of their folder, wherever they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import names
from pipeline.config import load
from pipeline.errors import WorkspaceError
from pipeline.retraining import registry
from pipeline.workspace import Workspace, manifest
from pipeline.workspace.freshness import Chain

LEADING_ELSEWHERE = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "x/../../y",
    "x//y",
    "x/",
    "x/.",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "é" * 200,
]


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
def test_a_name_that_could_leave_its_folder_is_rejected(name: str) -> None:
    assert not names.is_relative_path(name)
    assert not names.is_name(name)


@pytest.mark.parametrize(
    "name", ["model.params", ".hidden", "...", "vgg11-1a2b3c4d@2026-W48", "naïve name", "exp[lr=0.1]"]
)
def test_plain_names_are_accepted_alone_and_joined_to_a_path(name: str) -> None:
    assert names.is_name(name)
    assert names.is_relative_path(f"{name}/{name}")
    assert not names.is_name(f"{name}/{name}")


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
def test_a_manifest_that_lists_such_a_file_is_damaged(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "evaluate"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    value = manifest.write(folder, "evaluate", ["metrics.json"], {}, {})
    assert manifest.read(folder) is not None
    value["files"][name] = value["files"]["metrics.json"]
    (folder / "manifest.json").write_text(json.dumps(value))
    assert manifest.read(folder) is None
    assert manifest.problems(folder, "evaluate", {}) == ["evaluate/manifest.json is damaged"]


ENTRY = {
    "run": "runs/mini-0123abcd/tiny-0123abcd@2026-W48",
    "generation": "2026-W48",
    "weights_sha256": "a" * 64,
    "architecture": "b" * 64,
    "accuracy": 0.9,
    "since": "2026-11-26T00:00:00Z",
}


@pytest.mark.parametrize(
    "change",
    [
        *({"run": run} for run in ("../x/y", "runs/../..", "runs/x/..", "/runs/x/y", "runs/x", "other/x/y", "runs//y")),
        {"generation": "\x1b[2J"},
        {"before": [{**ENTRY, "run": "runs/../.."}]},
        {"rolled_back": ["runs/../.."]},
    ],
)
def test_a_pointer_to_anything_but_a_run_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    pointer = tmp_path / "tiny.json"
    pointer.write_text(json.dumps({**ENTRY, "before": [ENTRY]}))
    found = registry.read(pointer)
    assert found is not None
    assert found.run == ENTRY["run"]
    pointer.write_text(json.dumps({**ENTRY, **change}))
    with pytest.raises(WorkspaceError, match=r"tiny\.json: damaged \(.*\); restore it, or delete it"):
        registry.read(pointer)


DIGEST = "0123abcd" * 8


@pytest.mark.parametrize(
    ("record", "known"),
    [
        ({"dataset": "{name}-0123abcd", "digest": DIGEST, "stat": {"x": [1, 2]}, "label": "all"}, True),
        ({"dataset": "{name}-0123abcd", "digest": DIGEST}, True),
        ({"dataset": "{name}-0123abcd", "digest": DIGEST, "label": 7}, False),
        ({"dataset": "{name}-0123abcd", "digest": DIGEST, "stat": "now"}, False),
        ({"dataset": "{name}-0123abcd"}, False),
        ({"digest": DIGEST}, False),
        ({"dataset": "{name}-/../../x", "digest": "/../../x" + DIGEST[8:]}, False),
        ({"dataset": "other-0123abcd", "digest": DIGEST}, False),
        ([], False),
    ],
)
def test_only_a_valid_record_identifies_a_source(tmp_path: Path, record: object, known: bool) -> None:
    chain = Chain(Workspace(tmp_path), load("config/vgg11.yaml"))
    pointer = chain.workspace.source_pointer(chain.config.data)
    pointer.parent.mkdir(parents=True)
    pointer.write_text(json.dumps(record).replace("{name}", chain.config.data.name))
    assert (chain.source_record() is not None) == known
    assert (chain.dataset_folder() is not None) == known
