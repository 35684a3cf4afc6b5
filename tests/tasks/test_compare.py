"""`Compare` through the real `luigi` command: what it trains, and what the page and its tables contain."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from luigi_runs import Result, clean_environment, luigi_command, run, small_archive
from luigid_process import Luigid

import tasks
from pipeline import comparison
from pipeline.errors import ConfigError
from pipeline.workspace import Workspace, events

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "narrow": {"conv_arch": [[1, 2], [1, 4]], "batch_norm": True, "dense": []},
    "wide": {"conv_arch": [[1, 4], [1, 8]], "batch_norm": True, "dense": []},
    "deep": {"conv_arch": [[1, 4], [1, 4], [1, 4]], "batch_norm": True, "dense": []},
    "dense": {"conv_arch": [[1, 2], [1, 4]], "batch_norm": False, "dense": [8]},
}

TRAINING = {"epochs": 1, "batch_size": 40, "learning_rate": 0.05, "validation_images": 40, "normalize": True}


class Bench:
    """A folder with configurations of four small networks in which to run `Compare`."""

    def __init__(self, root: Path) -> None:
        self.root, self.workspace = root, Workspace(root / "artifacts")
        small_archive(root / "mini.tar.gz")
        for name in ARCHITECTURES:
            self.configure(name)

    def configure(self, name: str, file: str = "", **training: Any) -> None:
        value = {
            "data": {"name": "mini", "source": "mini.tar.gz"},
            "architecture": {"name": name, **ARCHITECTURES[name]},
            "training": {**TRAINING, **training},
            "device": "cpu",
        }
        (self.root / f"{file or name}.yaml").write_text(yaml.safe_dump(value))

    def compare(self, configs: str, *arguments: str, scheduler: tuple[str, ...] = ("--local-scheduler",)) -> Result:
        """Run Compare. `ran` lists the stages that it ran."""
        before = len(events.read(self.workspace))
        command = [*luigi_command(), "--module", "tasks", "Compare", "--configs", configs, *scheduler, *arguments]
        done = run([*command, "--workspace", str(self.workspace.root)], self.root, clean_environment())
        news = events.read(self.workspace)[before:]
        ran = [f"{event['stage']} {event['run']}" for event in news if event["event"] == "started"]
        return Result(done.rc, done.output, done.log, done.seconds, ran)

    def page(self) -> Path:
        (folder,) = (self.workspace.root / "comparisons").iterdir()
        return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Result]:
    """Four architectures with two seeds each, trained by two workers."""
    bench = Bench(tmp_path_factory.mktemp("compare"))
    result = bench.compare(
        '["narrow.yaml", "wide.yaml", "deep.yaml", "dense.yaml"]', "--seeds", "0,1", "--workers", "2"
    )
    assert result.rc == 0, result.text
    return bench, result


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_four_architectures_and_two_seeds_are_eight_trainings_and_one_page(compared: tuple[Bench, Result]) -> None:
    bench, result = compared
    stages = Counter(line.split()[0] for line in result.ran)
    assert stages["train"] == 8
    assert len({line for line in result.ran if line.startswith("train")}) == 8
    assert stages["evaluate"] == 8
    assert stages["compare"] == 1
    assert stages["dataset"] == 1
    assert stages["report"] == 0
    runs = [path.name for path in bench.workspace.runs.glob("*/*")]
    assert sum(name.endswith("@seed-1") for name in runs) == 4
    assert sum("@" not in name for name in runs) == 4
    assert str(bench.page() / "index.html") in result.log


def test_a_second_call_runs_nothing_and_says_so(compared: tuple[Bench, Result]) -> None:
    bench, _ = compared
    again = bench.compare("*.yaml", "--seeds", "0,1")
    assert again.rc == 0
    # The same files in another order are the same comparison.
    assert again.ran == []
    assert "up to date" in again.log


def test_the_tables_rank_by_mean_accuracy_over_the_seeds(compared: tuple[Bench, Result]) -> None:
    bench, _ = compared
    with open(bench.page() / "ranking.csv", newline="") as file:
        ranking = list(csv.DictReader(file))
    with open(bench.page() / "runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    assert [row["rank"] for row in ranking] == ["1", "2", "3", "4"]
    means = [float(row["accuracy"]) for row in ranking]
    assert means == sorted(means, reverse=True)
    assert len(runs) == 8
    for row in ranking:
        own = [float(other["accuracy"]) for other in runs if other["config"] == row["config"]]
        assert float(row["accuracy"]) == pytest.approx(sum(own) / 2, abs=1e-5)
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
        assert row["seeds"] == "2"
        assert int(row["parameters"]) > 0
        assert int(row["multiply_adds"]) > 0
        assert float(row["seconds"]) > 0
        assert float(row["images_per_second"]) > 0
    assert {row["seed"] for row in runs} == {"0", "1"}
    for row in runs:
        metrics = json.loads(next(bench.workspace.runs.glob(f"*/{row['run']}/evaluate/metrics.json")).read_text())
        assert float(row["accuracy"]) == pytest.approx(metrics["accuracy"], abs=1e-5)


def test_the_page_names_every_run_and_loads_nothing(compared: tuple[Bench, Result]) -> None:
    bench, _ = compared
    html = (bench.page() / "index.html").read_text()
    for name in ARCHITECTURES:
        assert f"{name}." in html
    assert "without test-time augmentation" in html
    assert html.count("seed-") >= 4
    for loading in ("<script", "<link", "src=", "@import", "url(http"):
        assert loading not in html


def test_the_done_check_imports_nothing_heavy(compared: tuple[Bench, Result]) -> None:
    bench, _ = compared
    code = (
        "import sys, tasks\n"
        f"task = tasks.Compare(configs='*.yaml', seeds='0,1', workspace={str(bench.workspace.root)!r})\n"
        "assert task.complete()\n"
        "print(sorted({'numpy', 'matplotlib', 'mxnet', 'jinja2', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bench.root,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_an_edited_file_is_read_again_in_the_same_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.root)
    for epochs in (1, 25):
        bench.configure("wide", epochs=epochs)
        planned = tasks.Compare(configs="wide.yaml").comparison
        assert [entry.chain.config.training.epochs for entry in planned.entries] == [epochs]


def test_only_a_lost_run_is_trained_again(compared: tuple[Bench, Result]) -> None:
    bench, _ = compared
    (lost,) = bench.workspace.runs.glob("*/wide-*@seed-1")
    (lost / "train" / "model.params").unlink()
    result = bench.compare("*.yaml", "--seeds", "0,1")
    assert result.rc == 0, result.text
    # The weights are the same again, so evaluation and page stay valid.
    assert result.ran[0] == f"train {lost.name}"
    assert {line.split()[0] for line in result.ran} <= {"train", "evaluate", "compare"}
    assert all(line.split()[1] == lost.name or line.startswith("compare") for line in result.ran)


def test_accuracies_over_different_views_are_distinguished(bench: Bench) -> None:
    file = bench.root / "wide.yaml"
    value = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**value, "evaluation": {"tta": 2}}))
    result = bench.compare('["narrow.yaml", "wide.yaml"]')
    assert result.rc == 0, result.text
    with open(bench.page() / "runs.csv", newline="") as table:
        assert {row["config"]: row["views"] for row in csv.DictReader(table)} == {"narrow.yaml": "1", "wide.yaml": "2"}
    html = (bench.page() / "index.html").read_text()
    assert ": averaged with that of the mirror image" in html
    assert "Test-time augmentation differs between runs" in html


def test_reports_are_written_and_linked_on_request(compared: tuple[Bench, Result]) -> None:
    bench, _ = compared
    result = bench.compare("narrow.yaml", "--reports", "--name", "with-report")
    assert result.rc == 0, result.text
    assert [line.split()[0] for line in result.ran if "narrow" in line and "train" in line] == []
    folder = bench.workspace.comparison("with-report")
    (run,) = bench.workspace.runs.glob("*/narrow-*[0-9a-f]/report")
    assert (run / "index.html").exists()
    link = json.loads((folder / "ranking.json").read_text())["ranking"][0]["runs"][0]["report"]
    assert (folder / link).resolve() == (run / "index.html").resolve()
    assert f'href="{link}"' in (folder / "index.html").read_text()
    (folder.parent / "with-report").rename(bench.root / "put-aside")


def test_two_commands_under_one_luigid_share_the_work(bench: Bench, central: Luigid) -> None:
    place = (*central.scheduler, "--worker-keep-alive")
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(bench.compare, '["narrow.yaml", "deep.yaml"]', scheduler=place) for _ in range(2)]
        results = [call.result() for call in calls]
    # Either may leave work to the other command; together they did it all.
    assert {result.rc for result in results} <= {0, 10, 25}, results[0].text + results[1].text
    started = Counter(
        f"{event['stage']} {event['run']}" for event in events.read(bench.workspace) if event["event"] == "started"
    )
    assert {stage: sum(line.startswith(stage) for line in started) for stage in ("train", "evaluate", "compare")} == {
        "train": 2,
        "evaluate": 2,
        "compare": 1,
    }
    assert set(started.values()) == {1}
    again = bench.compare('["narrow.yaml", "deep.yaml"]', scheduler=place)
    assert (again.rc, again.ran) == (0, []), again.text
    assert "up to date" in again.log


# --- what cannot be compared --------------------------------------------------------------------------------------


def test_two_files_of_one_architecture_are_refused_before_anything_runs(bench: Bench) -> None:
    bench.configure("wide", "wide-slow", learning_rate=0.001)
    result = bench.compare('["wide.yaml", "wide-slow.yaml"]')
    assert result.rc == 2
    assert "wide-slow.yaml: the same run as wide.yaml" in result.log
    assert "Traceback" not in result.text
    assert not bench.workspace.root.exists()


def test_different_test_images_are_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="only accuracies on the same images can be compared"):
        comparison.plan([str(bench.root / "wide.yaml"), "config/quickstart.yaml"], [], bench.workspace)


@pytest.mark.parametrize(
    ("configs", "seeds", "words"),
    [
        ("nothing-*.yaml", "", r"no file matches nothing-\*\.yaml"),
        ("config/quickstart.yaml", "one", "--seeds: found 'one'"),
        ('["wide.yaml"', "", "not a JSON list"),
        ("[1]", "", "not a JSON list of paths"),
    ],
)
def test_a_pattern_without_files_and_a_bad_seed_are_reported(configs: str, seeds: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tasks.Compare(configs=configs, seeds=seeds)


def test_the_configurations_own_seed_is_the_plain_run(bench: Bench) -> None:
    bench.configure("wide", seed=7)
    planned = comparison.plan([str(bench.root / "wide.yaml")], [7, 8], bench.workspace)
    assert [entry.chain.generation for entry in planned.entries] == ["", "seed-8"]
    assert [entry.chain.config.training.seed for entry in planned.entries] == [7, 8]


def test_one_more_configuration_makes_a_named_page_outdated(bench: Bench) -> None:
    wide, deep = (str(bench.root / f"{name}.yaml") for name in ("wide", "deep"))
    one = comparison.plan([wide], [], bench.workspace, "mine")
    two = comparison.plan([wide, deep], [], bench.workspace, "mine")
    assert one.folder == two.folder
    assert one.why() == ["no result yet"]
    assert comparison.plan([wide], [], bench.workspace).name != comparison.plan([deep], [], bench.workspace).name
