"""The example pipeline, run unchanged under a real luigid."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from luigi_runs import CHECKOUT, Result, SmallChain, clean_environment, luigi_command, run
from luigid_process import Luigid

import tasks
from pipeline.errors import WorkspaceError
from pipeline.workspace import Workspace, events

WIDTHS = (2, 4)


@pytest.fixture
def example(prepared: SmallChain) -> SmallChain:
    """The example in a folder with a configuration for each width and a prepared data set."""
    shutil.copytree(CHECKOUT / "tests" / "example_pipeline", prepared.root, dirs_exist_ok=True)
    for width in WIDTHS:
        prepared.configure(architecture__name=f"width{width}", architecture__conv_arch=[[1, width], [1, 8]])
        shutil.copy(prepared.config, prepared.root / f"width{width}.yaml")
    return prepared


def nightly(example: SmallChain, central: Luigid, configs: list[str], **environment: str) -> Result:
    command = [*luigi_command(), "--module", "nightly", "Nightly", "--configs", json.dumps(configs), "--workers", "2"]
    path = os.pathsep.join([str(CHECKOUT), str(example.root)])
    return run([*command, *central.scheduler], example.root, clean_environment(PYTHONPATH=path, **environment))


def test_the_example_trains_what_it_needs_and_delivers_the_best_model(example: SmallChain, central: Luigid) -> None:
    configs = [f"width{width}.yaml" for width in WIDTHS]
    result = nightly(example, central, configs, OMP_NUM_THREADS="")
    assert result.rc == 0, result.text
    assert "Traceback" not in result.text
    reports = [tasks.Report(config=str(example.root / name), workspace=str(example.workspace)) for name in configs]
    best = max((report.result() for report in reports), key=lambda result: result.accuracy)
    assert (example.root / "service" / "news.txt").read_text() == f"{best.run}: {best.accuracy:.1%}\n"
    model = example.root / "service" / "model.onnx"
    assert model.read_bytes() == Path(best.files["export/model.onnx"].path).read_bytes()
    assert (best.test_images, best.generation) == (60, "")
    assert {name for name in best.files if name.startswith("train/")} >= {"train/model.params", "train/manifest.json"}
    # Despite two workers, each training had all cores to itself.
    trainings = [event for event in events.read(Workspace(example.workspace)) if event["stage"] == "train"]
    assert [event["event"] for event in trainings] == ["started", "finished"] * 2
    assert [event["run"] for event in trainings[::2]] == [event["run"] for event in trainings[1::2]]


def test_an_error_of_ours_is_one_line_in_the_examples_log(example: SmallChain, central: Luigid) -> None:
    result = nightly(example, central, ["width2.yaml", "width99.yaml"])
    assert result.rc == 30, result.text
    assert [line for line in result.log.splitlines() if "width99.yaml" in line and line.startswith("ERROR: ")]
    assert "Traceback" not in result.text
    assert not events.read(Workspace(example.workspace))


def test_a_chain_that_is_not_finished_has_no_result(fresh: SmallChain) -> None:
    report = tasks.Report(config=str(fresh.config), workspace=str(fresh.workspace))
    with pytest.raises(WorkspaceError, match="has no finished report yet"):
        report.result()
