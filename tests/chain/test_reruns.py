"""When a stage runs again, and which ones do not: every row of the rule that a user must be able to predict."""

from __future__ import annotations

import csv
import functools
import http.server
import os
import shutil
import threading

import pytest
import yaml
from luigi_runs import SmallChain, small_archive

from pipeline.config import load
from pipeline.files import read_json, write_json
from pipeline.model import weights
from pipeline.workspace import manifest
from pipeline.workspace.freshness import STAGES
from pipeline.workspace.manifest import STAGE_VERSIONS

AFTER_DATASET = ["train", "evaluate", "export", "report"]
AFTER_TRAIN = ["evaluate", "export", "report"]


def history(chain):
    with open(chain.folder("train") / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights_of(chain):
    arrays = weights.read(chain.folder("train") / "model.params")
    return {name: value.tobytes() for name, value in arrays.items()}


def test_nothing_changed_nothing_runs(done):
    result = done.report()
    assert result.ran == []
    assert "up to date" in result.log


def test_comments_key_order_and_layout_are_no_change(done):
    def reversed_order(value):
        return {key: reversed_order(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    text = yaml.safe_dump(reversed_order(done.values), sort_keys=False, default_flow_style=True, width=40)
    done.config.write_text(f"# another comment\n{text}   # and one more\n\n")
    assert done.report().ran == []


def test_another_width_is_a_new_run_and_going_back_costs_nothing(done):
    old = done.folder("train")
    done.configure(architecture__conv_arch=[[1, 5], [1, 8]])
    status = done.status()
    assert "new architecture; closest run: tiny-" in status
    assert "conv_arch[0][1]: 4 -> 5" in status
    before = done.files()
    assert done.report().ran == AFTER_DATASET
    assert done.folder("train") != old
    after = done.files()
    assert {path: after.get(path) for path in before} == before, "the old run is not what it was"
    done.configure(architecture__conv_arch=[[1, 4], [1, 8]])
    assert done.report().ran == []


def test_other_images_behind_the_same_address_are_a_new_run(done):
    done.configure(data__source=str(small_archive(done.root / "own.tar.gz", seed=0)))
    assert done.report().ran == ["dataset"], "the same images from another place"
    old = done.folder("train")
    small_archive(done.root / "own.tar.gz", seed=7)
    assert ".tar.gz has changed" in done.status()
    assert done.report().ran == ["dataset", *AFTER_DATASET]
    assert done.folder("train") != old
    assert (old / "model.params").exists()


def test_another_name_of_the_data_set_is_a_new_run(done):
    old = done.folder("train")
    done.configure(data__name="other")
    assert done.luigi("TrainVGG").ran == ["dataset", "train"]
    assert done.folder("train") != old


def test_raising_epochs_continues_from_the_saved_params_to_the_weights_of_one_long_run(done, finished, tmp_path):
    first_epoch = history(done)
    done.configure(training__epochs=3)
    assert "training.epochs raised: 1 -> 3, resuming from train/model.params" in done.status()
    assert done.report().ran == AFTER_DATASET
    assert [row["epoch"] for row in history(done)] == ["1", "2", "3"]
    assert history(done)[:1] == first_epoch, "the first epoch was trained again"
    details = done.manifest("train")["details"]
    assert details["resumed"] == 1
    assert details["exact"]
    long = SmallChain(tmp_path / "long", finished.archive)
    shutil.copytree(finished.workspace / "datasets", long.workspace / "datasets")
    long.configure(training__epochs=3)
    assert long.luigi("TrainVGG").ran == ["train"]
    assert weights_of(long) == weights_of(done)
    done.configure(training__epochs=2)
    assert done.report().ran == [], "fewer epochs than there are"
    assert "training.epochs: trained with 3, config now says 2" in done.status()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"training__learning_rate": 0.01}, "training.learning_rate: trained with 0.05, config now says 0.01"),
        (
            {"training__schedule": {"kind": "cosine"}},
            'training.schedule.kind: trained with "constant", config now says "cosine"',
        ),
        ({"device": "cpu:0,1"}, 'device: trained with "cpu", config now says "cpu:0,1"'),
        ({"distributed": {"workers": 2}}, "distributed.workers: trained with 1, config now says 2"),
    ],
)
def test_other_training_keys_retrain_nothing_and_status_says_so(done, change, line):
    done.configure(**change)
    result = done.report()
    assert result.ran == []
    assert result.log.count(line) == 1
    for way in ("--generation NAME", "another architecture.name", "SetAside --stage train --confirm"):
        assert way in result.log
    assert f"config changed: {line} (does not retrain)" in done.status()
    page = (done.folder("report") / "index.html").read_text()
    assert "none since training" in page.partition("Configuration changes")[2]


def test_settings_that_change_with_raised_epochs_are_said_to_take_effect(done):
    done.configure(training__epochs=2, training__learning_rate=0.01)
    assert "config now says 0.01 (takes effect when it trains)" in done.status()
    result = done.luigi("TrainVGG")
    assert result.ran == ["train"]
    assert "training with changed settings, which replaces its weights: training.learning_rate: " in result.log
    assert "keeping" not in result.log


def test_other_views_measure_and_export_again_and_retrain_nothing(done):
    alone = read_json(done.folder("evaluate") / "metrics.json")["accuracy"]
    done.configure(evaluation__tta=6)
    status = done.status()
    assert "evaluation.tta changed: 1 -> 6" in status
    assert "config changed" not in status
    result = done.report()
    assert result.ran == AFTER_TRAIN
    assert f"averaged over 6 views of the image; one view {alone:.2%}" in result.log
    page = (done.folder("report") / "index.html").read_text()
    without = f"(test-time augmentation); without it, accuracy is {alone * 100:.2f}"
    assert f"averaged over 6 views of the image {without}" in page
    assert ", 6 views per image" in page
    assert "averaged over 6 views" in (done.folder("report") / "report.md").read_text()
    rows = read_json(done.folder("report") / "report.json")["provenance"]["config"]
    assert [row["value"] for row in rows if row["key"] == "evaluation.tta"] == [6]
    assert done.report().ran == []
    done.configure(evaluation__tta=1)
    assert done.report().ran == AFTER_TRAIN
    assert "Without test-time augmentation" not in (done.folder("report") / "report.md").read_text()


def as_it_was_before_keys_were_renamed(chain):
    """Rewrite a finished workspace to what it was while keys had the names that are refused today."""

    def old(record):
        record["schedule"] = record.pop("retrain")
        record["evaluation"] = {"views": record["evaluation"].pop("tta")}
        return record

    recorded = chain.folder("train") / "config.yaml"
    head = "".join(line for line in recorded.read_text().splitlines(keepends=True) if line.startswith("#"))
    recorded.write_text(head + yaml.safe_dump(old(yaml.safe_load(recorded.read_text())), sort_keys=False))
    for stage in AFTER_DATASET:
        value = chain.manifest(stage)
        inputs, details = value["inputs"], value["details"]
        if "evaluation.tta" in inputs:
            inputs["evaluation.views"] = inputs.pop("evaluation.tta")
        if "config" in details:
            old(details["config"])
        manifest.write(chain.folder(stage), stage, value["files"], inputs, details)
    return recorded


def test_a_workspace_from_before_keys_were_renamed_stays_finished_and_its_training_resumes(done, tmp_path):
    done.configure(evaluation__tta=2)
    done.report()
    recorded = as_it_was_before_keys_were_renamed(done)
    status = done.luigi("Status")
    assert (status.rc, status.output.count(" done ")) == (0, len(STAGES)), status.output
    assert done.report().ran == []
    again = shutil.copy(recorded, tmp_path / "again.yaml")
    assert load(again) == load(recorded)
    (done.folder("report") / "report.json").unlink()
    assert done.report().ran == ["report"]
    done.configure(training__epochs=2)
    assert done.report().ran == AFTER_DATASET
    assert done.manifest("train")["details"]["resumed"] == 1
    assert done.manifest("train")["details"]["exact"]


def test_a_configuration_recorded_by_a_training_is_read_with_old_names_of_keys(finished, tmp_path):
    recorded = finished.folder("train") / "config.yaml"
    old = tmp_path / "config.yaml"
    old.write_text(recorded.read_text().replace("\nretrain:", "\nschedule:").replace("  tta:", "  views:"))
    assert old.read_text() != recorded.read_text()
    assert load(old) == load(recorded)


def test_an_evaluation_older_than_tta_is_not_repeated(done):
    for stage in ("evaluate", "export"):
        path = done.folder(stage) / "manifest.json"
        value = read_json(path)
        del value["inputs"]["evaluation.tta"]
        write_json(path, value)
    assert done.report().ran == []


def test_a_changed_checkpoint_interval_is_not_reported(done):
    done.configure(training__checkpoint_seconds=1)
    assert done.report().ran == []
    assert "config changed" not in done.status()


def test_the_report_of_a_later_stage_shows_the_config_changes(done):
    done.configure(training__learning_rate=0.01)
    (done.folder("report") / "report.json").unlink()
    result = done.report()
    assert result.ran == ["report"]
    assert "training.learning_rate: trained with 0.05, config now says 0.01" in result.log
    page = (done.folder("report") / "index.html").read_text()
    assert "trained with 0.05" in page
    assert "now says 0.01" in page


def test_a_generation_is_a_new_run_beside_the_old_one(done):
    before = done.files()
    assert done.report("--generation", "2026-W48").ran == AFTER_DATASET
    after = done.files()
    assert {path: after.get(path) for path in before} == before
    assert done.folder("train", "2026-W48").parent.name == done.folder("train").parent.name + "@2026-W48"
    assert done.report("--generation", "2026-W48").ran == []
    assert done.report().ran == []


def delete(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def garble(path):
    path.write_text("{ half a manifest")


@pytest.mark.parametrize(
    ("stage", "name", "harm"),
    [
        ("dataset", "train_images.npy", delete),
        ("dataset", "test_labels.npy", truncate),
        ("dataset", "manifest.json", delete),
        ("train", "model.params", truncate),
        ("train", "history.csv", delete),
        ("evaluate", "metrics.json", delete),
        ("evaluate", "predictions.npz", truncate),
        ("evaluate", "manifest.json", garble),
        ("export", "model.onnx", truncate),
        ("report", "index.html", delete),
        ("report", "report.json", truncate),
    ],
)
def test_a_lost_output_is_made_again_and_what_was_made_from_it_stays(done, stage, name, harm):
    path = done.folder(stage) / name
    harm(path)
    assert done.chain().why(stage)
    # A training's history holds times, so a second one is never the same, and the report shows it.
    assert done.report().ran == (["train", "report"] if stage == "train" else [stage])
    assert path.exists()
    assert done.chain().complete("report")


@pytest.mark.parametrize("stage", STAGES)
def test_a_newer_version_of_a_stage_runs_that_stage_alone(done, stage):
    path = done.folder(stage) / "manifest.json"
    write_json(path, {**read_json(path), "version": STAGE_VERSIONS[stage] - 1})
    now = STAGE_VERSIONS[stage]
    assert f"made by version {now - 1} of this stage, which is now at version {now}" in done.chain().why(stage)[0]
    assert done.report().ran == (["train", "report"] if stage == "train" else [stage])


def test_the_source_may_go_once_its_data_set_is_made(done):
    own = small_archive(done.root / "own.tar.gz")
    done.configure(data__source=str(own))
    assert done.report().ran == ["dataset"]
    own.unlink()
    assert done.report().ran == []


def test_an_address_s_secrets_are_written_nowhere_and_a_new_one_repeats_nothing(fresh):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(fresh.archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"127.0.0.1:{server.server_port}/{fresh.archive.name}"
        mirrors = ["https://me:hush/hush@host/x", f"http://{here}#access_token=hush"]
        fresh.configure(data__source=f"http://me:hush@{here}?token=hush", data__mirrors=mirrors)
        result = fresh.report(no_proxy="127.0.0.1")
        server.shutdown()
    assert "hush" not in result.text
    written = [path for path in fresh.workspace.rglob("*") if path.is_file()]
    assert {"trainer.npz", "config.yaml", "train.log", "events.jsonl", "index.html"} <= {path.name for path in written}
    assert not [path for path in written if b"hush" in path.read_bytes()]
    assert here in (fresh.folder("train") / "config.yaml").read_text()
    fresh.configure(data__source=f"http://another:one@{here}?token=new", training__epochs=3)
    assert fresh.report().ran == ["train", *AFTER_TRAIN]
    assert len(history(fresh)) == 3
