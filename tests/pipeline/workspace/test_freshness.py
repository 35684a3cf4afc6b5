"""The rule of reruns: reasons in words, changes that do not retrain, sources without secrets."""

from __future__ import annotations

import pytest

from pipeline import files
from pipeline.config import from_dict, to_dict
from pipeline.workspace import Workspace, run_id
from pipeline.workspace.freshness import Chain, config_changes, shown_source

VALUE = {
    "data": {"name": "mini", "source": "https://me:secret@host/mini.tar.gz?token=secret"},
    "architecture": {"name": "tiny", "conv_arch": [[1, 4]]},
    "training": {"epochs": 4},
}


def config(**training):
    return from_dict({**VALUE, "training": {**VALUE["training"], **training}})


def trained(value):
    return {"details": {"config": to_dict(value), "epochs": value.training.epochs}}


@pytest.mark.parametrize(
    ("then", "now", "lines"),
    [
        ({}, {}, []),
        ({}, {"learning_rate": 0.5}, ["training.learning_rate: trained with 0.01, config now says 0.5"]),
        ({}, {"epochs": 9}, []),
        ({}, {"epochs": 2}, ["training.epochs: trained with 4, config now says 2"]),
        ({}, {"checkpoint_seconds": 5}, []),
        (
            {"schedule": {"kind": "step", "milestones": [1, 2]}},
            {"schedule": {"kind": "step", "milestones": [1]}},
            ["training.schedule.milestones[1]: trained with 2, config now says (gone)"],
        ),
        (
            {},
            {"init_from": "/old.params"},
            ['training.init_from: trained with nothing, config now says "/old.params"'],
        ),
    ],
)
def test_config_changes_list_the_training_keys_that_do_not_retrain(then, now, lines):
    assert config_changes(trained(config(**then)), config(**now)) == lines


def test_a_new_key_at_its_default_is_no_change():
    before = trained(config())
    del before["details"]["config"]["training"]["augmentation"]["cutout"]
    del before["details"]["config"]["training"]["label_smoothing"]
    assert config_changes(before, config()) == []
    assert config_changes(before, config(augmentation={"cutout": 8})) == [
        "training.augmentation.cutout: trained with 0, config now says 8"
    ]


def test_removed_and_unrecorded_keys_are_shown():
    before = {"details": {"config": {"training": {"mystery": 7}}, "epochs": 4}}
    lines = config_changes(before, config())
    assert "training.mystery: trained with 7, config now says (gone)" in lines
    assert "training.learning_rate: trained with (none), config now says 0.01" in lines


def test_without_a_training_there_are_no_config_changes():
    assert config_changes(None, config()) == []


def test_a_password_in_an_address_is_never_shown(tmp_path):
    assert shown_source(config().data) == "https://host/mini.tar.gz"
    why = Chain(Workspace(tmp_path), config()).why("dataset")
    assert why == ["no data set from https://host/mini.tar.gz yet"]


def test_everything_waits_for_a_missing_data_set(tmp_path):
    chain = Chain(Workspace(tmp_path / "nowhere"), config())
    for stage in ("train", "evaluate", "export", "report"):
        assert chain.why(stage) == ["no data set yet"]
        assert not chain.complete(stage)
    assert chain.run() is None
    assert not (tmp_path / "nowhere").exists(), "asking creates nothing"


def test_a_run_is_named_by_architecture_and_generation():
    architecture = config().architecture
    name = run_id(architecture)
    assert name.startswith("tiny-")
    assert len(name) == len("tiny-") + 8
    assert run_id(architecture, "2026-W48") == f"{name}@2026-W48"


def test_checking_a_finished_chain_hashes_no_file(finished, monkeypatch):
    def forbidden(path):
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(files, "sha256_file", forbidden)
    monkeypatch.setattr("pipeline.workspace.manifest.sha256_file", forbidden)
    assert finished.chain().complete("report")
