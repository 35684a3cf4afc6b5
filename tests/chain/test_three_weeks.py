"""Weeks of scheduled retraining in a minute: the real command, with the date given."""

from __future__ import annotations

import datetime
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from luigi_runs import Result, SmallChain, luigi_command, run, small_archive

import tasks
from pipeline import predict
from pipeline.files import sha256_file, write_json
from pipeline.retraining import generations, registry, served
from pipeline.workspace import Workspace, events

WHOLE = ["dataset", "train", "evaluate", "export", "promote", "report"]


class Weeks(SmallChain):
    """A small chain that is retrained."""

    def retrain(self, *arguments: str, rc: int = 0) -> Result:
        result = self.luigi("Retrain", *arguments)
        assert result.rc == rc, result.text
        return result

    @property
    def current(self) -> registry.Pointer | None:
        """The current model, which services find at its stable path."""
        path = Workspace(self.workspace).current(self.chain().config)
        pointer = registry.read(path)
        if pointer is not None:
            about = json.loads((served.folder(path) / "manifest.json").read_text())
            assert (about["run"], about["weights_sha256"]) == (pointer.run, pointer.weights_sha256)
            assert sha256_file(served.folder(path) / "model.onnx") == about["files"]["model.onnx"]["sha256"]
        return pointer

    def history(self) -> list[tuple[str, str]]:
        """What the event log says of promotions, as (event, generation)."""
        told = ("promoted", "refused", "rolled back", "pruned")
        found = [event for event in events.read(Workspace(self.workspace)) if event["event"] in told]
        return [(event["event"], event["generation"]) for event in found]

    def report_of(self, generation: str) -> tuple[dict[str, Any], str]:
        folder = self.folder("report", generation)
        return json.loads((folder / "report.json").read_text()), (folder / "index.html").read_text()

    def made(self) -> list[str]:
        return [item.name for item in generations.find(Workspace(self.workspace), self.chain().config)]


@pytest.fixture
def weeks(tmp_path: Path) -> Weeks:
    chain = Weeks(tmp_path / "weeks")  # with an archive of its own: tests change it
    chain.configure(training__epochs=12, retrain={"every": "week", "tolerance": 0.02, "keep": 1})
    (chain.cwd / "luigi.cfg").write_text(f"[vgg]\nnotify = cat >> {chain.root}/told.jsonl\n")
    return chain


def test_three_weeks_with_a_worse_model_a_roll_back_and_retention(weeks: Weeks) -> None:
    # The first week: a generation is due, and there is nothing that it could be worse than.
    assert weeks.retrain("--date", "2026-11-04").ran == WHOLE
    assert weeks.current
    assert weeks.current.generation == "2026-W45"
    assert weeks.current.accuracy > 0.5, "the rest of the test needs a model that learned something"
    # Later that week: nothing.
    again = weeks.retrain("--date", "2026-11-08")
    assert again.ran == []
    assert "up to date: " in again.log
    assert "2026-11-09" in again.log

    # The second week somebody breaks the learning rate: the new model is worse, and the old one stays.
    good = weeks.values["training"]["learning_rate"]
    weeks.configure(training__learning_rate=1e-9)
    before = weeks.current
    worse = weeks.retrain("--date", "2026-11-09", "--workers", "3", rc=5)
    assert worse.ran == WHOLE[1:]
    assert "refused: accuracy" in worse.log
    assert weeks.current == before
    facts, page = weeks.report_of("2026-W46")
    assert facts["comparison"]["decision"]["outcome"] == "refused"
    assert facts["comparison"]["previous"]["run"].endswith("@2026-W45")
    assert facts["comparison"]["previous"]["p"] < 0.05
    low, high = facts["comparison"]["previous"]["interval"]
    assert low < facts["comparison"]["previous"]["difference"] < high < 0
    assert ">Refused</strong>" in page
    # The gate has decided: a second call that week is no failure again, and a change waits for the next week.
    weeks.configure(training__weight_decay=1e-5)
    again = weeks.retrain("--date", "2026-11-10")
    assert again.ran == []
    assert "changed since: training.weight_decay: trained with " in again.log

    # The third week it is repaired, to another value: with the first one it would be the model of the first week again.
    weeks.configure(training__learning_rate=1.01 * good, retrain__tolerance=0.5)
    assert weeks.retrain("--date", "2026-11-18", "--workers", "3").ran == WHOLE[1:]
    assert weeks.current.generation == "2026-W47"
    assert [entry.generation for entry in weeks.current.before] == ["2026-W45"]
    assert predict.resolve_model(weeks.workspace) == weeks.folder("export", "2026-W47") / "model.onnx"

    # Somebody does not like it.
    undone = weeks.luigi("Rollback")
    assert undone.rc == 0, undone.text
    assert weeks.current.generation == "2026-W45"
    assert predict.resolve_model(weeks.workspace) == weeks.folder("export", "2026-W45") / "model.onnx"

    assert f"the current model is {weeks.current.run}" in weeks.status()

    # Retention: the newest one and the current one stay, and nothing moves before it was shown.
    preview = weeks.luigi("Prune")
    assert preview.rc == 0, preview.text
    assert "would move generation 2026-W46" in preview.output
    assert "2026-W45" not in preview.output
    assert weeks.made() == ["2026-W47", "2026-W46", "2026-W45"]
    assert weeks.luigi("Prune", "--confirm").rc == 0
    assert weeks.made() == ["2026-W47", "2026-W45"]
    assert len(list((weeks.workspace / "trash").glob("*/runs/*/*@2026-W46/train/model.params"))) == 1

    expected = [
        ("promoted", "2026-W45"),
        ("refused", "2026-W46"),
        ("promoted", "2026-W47"),
        ("rolled back", "2026-W45"),
        ("pruned", "2026-W46"),
    ]
    assert weeks.history() == expected

    told = [json.loads(line) for line in (weeks.root / "told.jsonl").read_text().splitlines()]
    assert [(event["event"], event["generation"]) for event in told] == expected[:-1]
    first, refused, _, back = told
    assert first["text"].endswith(f"{first['run']}: accuracy {first['accuracy']:.2%} (first model)")
    assert (refused["before"], refused["config"]) == (first["run"], str(weeks.config))
    assert refused["reason"].startswith(f"accuracy {refused['accuracy']:.2%}, -")
    assert (back["run"], back["dataset"], back["architecture"]) == (first["run"], "mini", "tiny")

    assert "next generation: 2026-W" in weeks.status()

    # One more, by hand and warm.
    weeks.configure(retrain__warm_start=True)
    weeks.retrain("--date", "2026-11-19", "--generation", "by-hand")
    assert weeks.current.generation == "by-hand"
    facts, _ = weeks.report_of("by-hand")
    assert weeks.history() == [*expected, ("promoted", "by-hand")]
    how = facts["training"]["segments"][0]["how"]
    assert how.endswith("@2026-W45/train/model.params"), how


def test_new_images_and_a_new_architecture_make_a_generation_due_in_the_same_week(weeks: Weeks) -> None:
    day = ("--date", "2026-11-25")
    weeks.configure(training__epochs=2)
    weeks.retrain(*day)
    first = weeks.current
    assert first
    # Other training and test images under the same name: the old model is judged on the new ones.
    small_archive(weeks.archive, seed=7)
    changed = weeks.luigi("Retrain", *day)
    assert changed.rc in (0, 5), changed.text
    assert changed.ran == WHOLE
    assert ".tar.gz has changed" in changed.log
    decision = generations.decision(weeks.run("2026-W48"))
    assert decision
    assert decision["compared"]["run"] == first.run
    assert decision["compared"]["on"] == "all"
    assert decision["reason"].endswith("; the two test sets have no test image in common")
    assert (
        weeks.report_of("2026-W48")[0]["comparison"]["previous"]["images_compared"]
        == "all 60 test images of the new test set"
    )
    assert weeks.retrain(*day).ran == []

    weeks.configure(architecture__conv_arch=[[1, 4], [1, 4]])
    changed = weeks.luigi("Retrain", *day)
    assert changed.rc in (0, 5), changed.text
    assert changed.ran == WHOLE[1:]
    assert "the architecture changed from tiny-" in changed.log
    # Touching the file changes nothing in it: the images are read again, and that is all. Whoever only finds a refused
    # generation does not fail for it, whatever the clock said when it was made.
    made = weeks.folder("report", "2026-W48") / "manifest.json"
    later = {key: value for key, value in json.loads(made.read_text()).items() if key != "checksum"}
    write_json(made, {**later, "created": "2099-01-01T00:00:00Z"})
    weeks.archive.touch()
    assert weeks.retrain(*day).ran == ["dataset"]


def test_two_models_are_compared_over_the_same_views(weeks: Weeks) -> None:
    weeks.configure(training__epochs=1, retrain__tolerance=0.9)
    weeks.retrain("--date", "2026-11-04")
    weeks.configure(evaluation__tta=2, retrain__new_seed=True)
    assert "evaluating the current model" in weeks.retrain("--date", "2026-11-11").log
    assert "evaluating the current model" not in weeks.retrain("--date", "2026-11-18").log


def test_range_daily_catches_up_with_every_missed_week(weeks: Weeks) -> None:
    weeks.configure(training__epochs=1, retrain__tolerance=0.9, retrain__new_seed=True)
    given = json.dumps({"config": str(weeks.config), "workspace": str(weeks.workspace)})
    command = [*luigi_command(), "--module", "tasks", "RangeDaily", "--of", "Retrain", "--local-scheduler"]
    command += ["--of-params", given, "--start", "2026-11-06", "--stop", "2026-11-11", "--now", "1795600000"]
    first = run(command, weeks.cwd)
    assert first.rc == 0, first.text
    assert sorted(weeks.made()) == ["2026-W45", "2026-W46"]
    assert weeks.history() == [("promoted", "2026-W45"), ("promoted", "2026-W46")]
    small_archive(weeks.archive, seed=7)  # of which no past period is to be trained again
    second = run(command, weeks.cwd)
    assert second.rc == 0, second.text
    shutil.rmtree(weeks.workspace / "runs")
    third = run(command, weeks.cwd)
    assert third.rc == 0, third.text
    assert len(weeks.history()) == 2


def test_range_daily_makes_only_what_differs_and_can_become_current(weeks: Weeks) -> None:
    weeks.configure(training__epochs=1, retrain__tolerance=0.9)
    november = [datetime.date(2026, 11, day) for day in range(1, 25)]

    def missing() -> set[str]:
        retrain = functools.partial(tasks.Retrain, config=str(weeks.config), workspace=str(weeks.workspace))
        complete = set(tasks.Retrain.bulk_complete.__func__(retrain, november))
        return {retrain(date=date).generation for date in november if date not in complete}

    assert missing() == {"2026-W48"}, "the others would get the same weights"
    weeks.configure(retrain__new_seed=True)
    assert missing() == {"2026-W44", "2026-W45", "2026-W46", "2026-W47", "2026-W48"}
    weeks.retrain("--date", "2026-11-11")
    assert weeks.current
    assert weeks.current.generation == "2026-W46"
    assert missing() == {"2026-W47", "2026-W48"}, "the gate would refuse earlier ones"


def test_a_finished_run_is_the_first_generation_and_is_not_trained_again(done: SmallChain) -> None:
    weeks = Weeks(done.root / "weeks", done.archive, done.values)
    shutil.copytree(done.workspace, weeks.workspace)
    weeks.configure(retrain={"every": "week", "tolerance": 0.99})
    plain = weeks.run()
    # The gate decides about it, which is all that is new.
    first = weeks.retrain("--date", "2026-11-04")
    assert first.ran == ["promote", "report"]
    assert f"same images, settings and seed, so the same weights as {plain.run_id}; reusing it" in first.log
    assert weeks.current
    assert weeks.current.run == plain.place
    assert weeks.report().ran == [], "its report is up to date, with the decision in it"
    # A week later nothing has changed, so training would gain nothing; the log says how to train anyway.
    stable = weeks.chain().workspace.current(weeks.chain().config).with_suffix("")
    stable.unlink()  # as a killed command may leave it
    again = weeks.retrain("--date", "2026-11-11")
    assert again.ran == []
    assert (stable / "model.onnx").is_file()
    assert f"up to date: 2026-W46: same images, settings and seed, so the same weights as {plain.run_id}" in (again.log)
    assert "retrain.new_seed: true" in again.log
    # With a seed of its own it is trained, and there is something to roll back to.
    weeks.configure(retrain__new_seed=True)
    assert weeks.retrain("--date", "2026-11-11").ran == WHOLE[1:]
    assert weeks.current.generation == "2026-W46"
    assert weeks.report_of("2026-W46")[0]["training"]["seed"] != 0
    # A clock in 1970 makes a generation, which stays behind the current one.
    older = weeks.retrain("--date", "1970-01-01", rc=5)
    assert "from an earlier period than 2026-W46" in older.log
    shutil.rmtree(weeks.workspace / "datasets" / "sources")  # until it is made again, nobody knows which run it is
    again = weeks.retrain("--date", "1970-01-01")
    assert again.ran == ["dataset"]
    assert "generation 1970-W01: nothing has changed" in again.log
    assert weeks.current.generation == "2026-W46"
    back = weeks.luigi("Rollback")
    assert back.rc == 0, back.text
    assert weeks.current.run == plain.place
    # What was set aside is shown, and brought back.
    assert weeks.luigi("SetAside", "--generation", "2026-W46", "--stage", "evaluate", "--confirm").rc == 0
    assert "@2026-W46 (evaluate; since 20" in weeks.luigi("Restore").output
    assert weeks.luigi("Restore", "--item", "2026-W46", "--confirm").rc == 0
    assert weeks.chain("2026-W46").complete("report")
    # Without a pointer nothing is current, and a damaged one is reported before any training.
    retired = weeks.luigi("Retire", "--name", "mini/tiny", "--confirm")
    assert retired.rc == 0, retired.text
    assert weeks.current is None
    pointer = weeks.chain().workspace.current(weeks.chain().config)
    pointer.write_text("{")
    damaged = weeks.retrain("--date", "2026-11-25", rc=35)
    assert damaged.ran == []
    assert "tiny.json: damaged" in damaged.log
    assert "Traceback" not in damaged.log


def test_a_finished_generation_has_its_result_when_epochs_were_raised_since(done: SmallChain) -> None:
    made = done.luigi("Retrain", "--generation", "by-hand")
    assert made.rc == 0, made.text
    done.configure(training__epochs=2)
    task = tasks.Retrain(config=str(done.config), workspace=str(done.workspace), generation="by-hand")
    assert task.complete()
    assert task.result().generation == "by-hand"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--date", "25.11.2026"], "25.11.2026"),
        (["--date", "9999-12-31"], "9999-W52: begins after the next period, "),
        (["--generation", "2999-01-01"], "2999-01-01: begins after the next period, "),
        (["--generation", "a/b"], "a/b"),
        (["--generation", "seed-3"], "seed-3"),
    ],
)
def test_an_invalid_date_or_name_is_reported_in_one_line(weeks: Weeks, arguments: list[str], found: str) -> None:
    result = weeks.retrain(*arguments, rc=2)
    assert found in result.log
    assert "Traceback" not in result.log
    assert not weeks.workspace.exists()
