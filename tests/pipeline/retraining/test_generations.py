"""Generations: names and periods, which would only repeat another, the way back, which can go, and the trash."""

from __future__ import annotations

import datetime
import shutil
from typing import Any

import msgspec
import pytest
from luigi_runs import SmallChain

from pipeline import predict
from pipeline.errors import PipelineError, WorkspaceError
from pipeline.files import read_json, write_json
from pipeline.process import child
from pipeline.retraining import generations, promotion, registry, trash
from pipeline.storage import locks
from pipeline.workspace import RUN_FOLDERS, Run, manifest, with_generation_seed
from pipeline.workspace.freshness import Chain

DAY = datetime.date


@pytest.mark.parametrize(
    ("every", "day", "name", "next_start"),
    [
        ("day", DAY(2026, 11, 25), "2026-11-25", DAY(2026, 11, 26)),
        ("week", DAY(2026, 11, 25), "2026-W48", DAY(2026, 11, 30)),
        ("week", DAY(2026, 11, 29), "2026-W48", DAY(2026, 11, 30)),
        ("week", DAY(2026, 11, 30), "2026-W49", DAY(2026, 12, 7)),
        ("week", DAY(2027, 1, 1), "2026-W53", DAY(2027, 1, 4)),  # ISO weeks belong to the year of their Thursday
        ("week", DAY(2024, 12, 30), "2025-W01", DAY(2025, 1, 6)),
        ("month", DAY(2026, 12, 31), "2026-12", DAY(2027, 1, 1)),
        ("month", DAY(2028, 2, 29), "2028-02", DAY(2028, 3, 1)),
    ],
)
def test_a_day_belongs_to_one_generation(every: str, day: DAY, name: str, next_start: DAY) -> None:
    assert generations.name(every, day) == name
    assert generations.next_start(every, day) == next_start
    assert generations.name(every, next_start) != name
    assert generations.name(every, next_start - datetime.timedelta(days=1)) == name


def test_names_sort_by_time() -> None:
    days = [DAY(2026, 1, 1) + datetime.timedelta(days=n) for n in range(800)]
    for every in ("day", "week", "month"):
        names = [generations.name(every, day) for day in days]
        assert names == sorted(names)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1970-W01", "2026-W48"),
        ("2026-W47", "2026-W48"),
        ("2026-W53", "2027-W01"),
        ("2026-10", "2026-11-26"),
        ("2026-10", "2026-W45"),
        ("2026-W43", "2026-11"),
        ("2026-11-22", "2026-W48"),
        ("2026-11-30", "2026-12"),
    ],
)
def test_periods_of_any_length_are_older_than_others(older: str, newer: str) -> None:
    assert generations.is_older(older, newer)
    assert not generations.is_older(newer, older)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2026-11", "2026-11-26"),  # the month is not over
        ("2026-W48", "2026-11-26"),
        ("2026-W44", "2026-11"),  # from October to November
        ("2026-W48", "2026-W48"),
        ("2026-13", "2026-W48"),
        ("2026-W60", "2026-W48"),
        ("by-hand", "2026-W48"),
        ("", "2026-W48"),
        ("0000-01", "9999-12"),
    ],
)
def test_periods_that_overlap_and_other_names_are_in_no_order(one: str, other: str) -> None:
    assert not generations.is_older(one, other)
    assert not generations.is_older(other, one)


# --- generations that are there -----------------------------------------------------------------------------------


def make(small: SmallChain, name: str, outcome: str = "promoted", weights: str = "") -> Run:
    """A generation after all others, copied from the finished run without one, with weights of its own."""
    plain, run = small.chain().run(), small.chain(name).run()
    assert plain
    assert run
    for folder in ("train", "evaluate", "export", "report"):
        shutil.copytree(plain.stage(folder), run.stage(folder))
    _trained_anew(run, weights or name)
    made = len(generations.find(small.chain().workspace, small.chain().config))
    _change(run.stage("train"), created=f"2030-01-{made + 1:02}T00:00:00Z")
    if outcome:
        run.stage("promote").mkdir()
        write_json(run.stage("promote") / "decision.json", {"outcome": outcome})
        manifest.write(run.stage("promote"), "promote", ["decision.json"], {}, {})
    if outcome == "promoted":
        entry = registry.entry_of(run, name)
        assert entry
        registry.set_current(_pointer(small), entry)
    return run


def _trained_anew(run: Run, weights: str) -> None:
    """Other weights in a finished run, measured (the same) and exported."""
    train, evaluate = manifest.read(run.stage("train")), manifest.read(run.stage("evaluate"))
    assert train
    assert evaluate
    (run.stage("train") / "model.params").write_text(weights)
    manifest.write(run.stage("train"), "train", train["files"], train["inputs"], train["details"])
    train = manifest.read(run.stage("train"))
    assert train
    inputs = {**evaluate["inputs"], "model.params": train["files"]["model.params"]["sha256"]}
    manifest.write(run.stage("evaluate"), "evaluate", evaluate["files"], inputs, evaluate["details"])


def _change(folder: Any, **values: Any) -> None:
    recorded = read_json(folder / "manifest.json")
    assert recorded
    write_json(folder / "manifest.json", {**recorded, **values})


def _pointer(small: SmallChain) -> Any:
    return small.chain().workspace.current(small.chain().config)


def _current(small: SmallChain) -> str:
    pointer = registry.read(_pointer(small))
    assert pointer
    return pointer.generation


def spare(small: SmallChain, keep: int) -> list[str]:
    return [item.name for item in generations.superfluous(small.chain(), keep)]


def test_what_was_promoted_counts_and_the_way_back_always_stays(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    make(done, "2026-W43", "refused")
    assert spare(done, keep=2) == []
    assert spare(done, keep=1) == [], "the current one, the one before it, and the newest, which would be made again"
    make(done, "2026-W44", "refused")
    assert spare(done, keep=2) == ["2026-W43"]
    make(done, "2026-W45", outcome="")
    assert spare(done, keep=1) == ["2026-W44", "2026-W43"], "nobody has decided about the newest yet"
    make(done, "2026-W46")
    make(done, "2026-W47")
    assert spare(done, keep=3) == ["2026-W44", "2026-W43", "2026-W41"]
    assert spare(done, keep=1) == ["2026-W44", "2026-W43", "2026-W42", "2026-W41"]
    generations.roll_back(done.chain())
    assert _current(done) == "2026-W46"
    make(done, "2026-W48", "refused")
    assert "2026-W47" in spare(done, keep=3), "what was rolled back is as good as refused"
    assert not {"2026-W46", "2026-W42", "2026-W41"} & set(spare(done, keep=3))


def test_a_generation_made_late_for_an_earlier_week_does_not_push_out_that_of_this_week(done: SmallChain) -> None:
    make(done, "2026-W47")
    make(done, "2026-W48", "refused")
    make(done, "2026-W40", "refused")
    assert spare(done, keep=1) == []


def test_what_was_pruned_comes_back_and_a_roll_back_says_how(done: SmallChain) -> None:
    runs = [make(done, f"2026-W4{number}") for number in (1, 2, 3)]
    moved, left = generations.prune(done.chain(), generations.superfluous(done.chain(), 1))
    assert (len(moved), left) == (1, [])
    assert not runs[0].root.exists()
    with pytest.raises(PipelineError, match=r"no finished generation.*Restore --item 2026-W41 --confirm"):
        generations.roll_back(done.chain(), "2026-W41")
    shutil.rmtree(runs[1].root)
    with pytest.raises(PipelineError, match=r"W42/train is gone.*W41/train is gone.*Restore --item \S+W41 --confirm"):
        generations.roll_back(done.chain())
    workspace = done.chain().workspace
    (entry,) = trash.entries(workspace)
    assert entry.is_named("2026-W41")
    assert not entry.is_named("2026-W4")
    assert trash.contents(workspace, entry) == ["evaluate", "export", "promote", "report", "train"]
    assert trash.restore(workspace, entry) == [str(runs[0].stage(name)) for name in sorted(RUN_FOLDERS)]
    assert trash.entries(workspace) == []
    assert not list(workspace.trash.iterdir())
    generations.roll_back(done.chain())
    assert _current(done) == "2026-W41"


def test_what_an_earlier_version_moved_to_the_trash_is_named_but_not_guessed_about(done: SmallChain) -> None:
    workspace = done.chain().workspace
    for name in ("2026-11-01T101112Z-tiny-00000000-evaluate", "tiny-00000000-step-3.npz", "2026-11-01T101113Z"):
        (workspace.trash / name).mkdir(parents=True)
    assert trash.entries(workspace) == []
    assert trash.strangers(workspace) == ["2026-11-01T101112Z-tiny-00000000-evaluate", "tiny-00000000-step-3.npz"]


def test_nothing_that_is_there_again_is_replaced_by_what_is_in_the_trash(done: SmallChain) -> None:
    workspace, run = done.chain().workspace, done.chain().run()
    assert run
    for stage_name in ("evaluate", "report"):
        workspace.move(run.stage(stage_name), trash.target(workspace, run.stage(stage_name)))
    run.stage("report").mkdir()
    entry = trash.entries(workspace)[0]
    with pytest.raises(WorkspaceError, match="report: there again; set that aside first"):
        trash.restore(workspace, entry)
    run.stage("report").rmdir()
    while found := trash.entries(workspace):
        trash.restore(workspace, found[0])
    assert done.chain().complete("report")


@pytest.mark.parametrize("busy", [*RUN_FOLDERS, "train-process"])
def test_a_run_of_which_any_stage_is_worked_on_is_not_moved(done: SmallChain, busy: str) -> None:
    run = make(done, "2026-W41", "refused")
    make(done, "2026-W42", "refused")
    with locks.hold(run.lock(busy), busy, wait=False):
        moved, left = generations.prune(done.chain(), generations.find(done.chain().workspace, done.chain().config)[1:])
    assert moved == []
    assert "generation 2026-W41 is already being worked on by process" in left[0]
    assert run.root.exists()


def test_a_generation_that_became_current_meanwhile_is_not_pruned(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42")
    chosen = [item for item in generations.find(done.chain().workspace, done.chain().config) if item.name == "2026-W41"]
    generations.roll_back(done.chain())
    assert generations.prune(done.chain(), chosen) == ([], ["generation 2026-W41 has become the current one"])


def test_a_roll_back_passes_over_the_very_same_weights_and_can_be_undone(done: SmallChain) -> None:
    make(done, "2026-W41")
    make(done, "2026-W42", weights="same")
    make(done, "2026-W43", weights="same")
    old, new = generations.roll_back(done.chain())
    assert (old.generation, new.generation) == ("2026-W43", "2026-W41")
    # Neither of the two comes back by itself.
    twin = done.chain("2026-W44").run()
    assert twin
    shutil.copytree(done.chain("2026-W42").folder("train"), twin.stage("train"))  # type: ignore[arg-type]
    pointer = registry.read(_pointer(done))
    decision = promotion.decide(twin, pointer, 1.0, None, 0.0)
    assert decision["outcome"] == "refused"
    assert "the very same weights as " in decision["reason"]
    # Going forward again restores the way back as well.
    generations.roll_back(done.chain(), "2026-W43")
    generations.roll_back(done.chain())
    assert _current(done) == "2026-W41"


# --- repetitions --------------------------------------------------------------------------------------------------


def twin(small: SmallChain, **changes: Any) -> str | None:
    small.configure(**changes)
    chain = small.chain("2026-W48")
    run = generations.same_weights(Chain(chain.workspace, with_generation_seed(chain.config, "2026-W48"), "2026-W48"))
    return run.run_id if run else None


def test_a_generation_that_would_only_repeat_a_training_is_known_as_such(done: SmallChain) -> None:
    plain = done.chain().run_id
    rate = done.values["training"]["learning_rate"]
    assert twin(done) == plain
    assert twin(done, training__learning_rate=0.01) is None
    assert twin(done, training__learning_rate=rate, training__epochs=2) is None
    assert twin(done, training__epochs=1, training__checkpoint_seconds=5, launcher=["env"]) == plain
    assert twin(done, retrain={"warm_start": True}) is None
    assert twin(done, retrain={"new_seed": True}) is None
    assert twin(done, retrain={}, training__init_from="old.params") is None
    assert twin(done, training__init_from=None) == plain
    train = done.manifest("train")
    _change(done.folder("train"), details={**train["details"], "exact": False, "inexact": ["other threads"]})
    assert twin(done) is None, "another training may end with other weights"
    _change(done.folder("train"), details=train["details"])
    make(done, "2026-W48")
    assert twin(done) is None, "it is trained already"


def test_generations_with_a_seed_of_their_own_have_each_another_one_and_always_the_same(done: SmallChain) -> None:
    done.configure(retrain={"new_seed": True})
    config = done.chain().config
    seeds = [with_generation_seed(config, f"2026-W{week}").training.seed for week in range(10, 50)]
    assert len(set(seeds)) == 40
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds[0] == with_generation_seed(config, "2026-W10").training.seed
    assert with_generation_seed(config, "").training.seed == config.training.seed
    assert with_generation_seed(config, "seed-3").training.seed == 3


def test_what_was_made_before_any_generation_is_compared_with_and_gone_back_to(done: SmallChain) -> None:
    plain = done.chain().run()
    assert plain
    week = make(done, "2026-W48", outcome="")
    _trained_anew(week, "a week later")
    promotion.promote(done.chain("2026-W48"), child.Reporter())
    decision = generations.decision(week)
    assert decision
    assert decision["outcome"] == "promoted"
    assert decision["compared"]["run"] == plain.place
    names = [item.name for item in generations.find(done.chain().workspace, done.chain().config)]
    assert names == ["2026-W48", plain.run_id]
    assert spare(done, keep=1) == [], "a run without a generation is never pruned"
    generations.roll_back(done.chain())
    pointer = registry.read(_pointer(done))
    assert pointer
    assert (pointer.run, pointer.generation) == (plain.place, "")
    generations.roll_back(done.chain(), "2026-W48")
    generations.roll_back(done.chain(), plain.run_id)
    assert _current(done) == ""


def test_a_current_model_without_a_generation_may_be_trained_further(done: SmallChain) -> None:
    plain = done.chain().run()
    assert plain
    promotion.promote(done.chain(), child.Reporter())
    first = registry.read(_pointer(done))
    _trained_anew(plain, "further")
    promotion.promote(done.chain(), child.Reporter())
    second = registry.read(_pointer(done))
    assert first
    assert second
    assert second.run == first.run == plain.place
    assert second.weights_sha256 != first.weights_sha256
    # The next generation is compared with it as it is then, whether the gate had been asked about it or not.
    _trained_anew(plain, "and further")
    week = make(done, "2026-W48", outcome="")
    _trained_anew(week, "a week later")
    promotion.promote(done.chain("2026-W48"), child.Reporter())
    pointer = registry.read(_pointer(done))
    assert pointer
    assert pointer.run == week.place
    assert [entry.run for entry in pointer.before] == [plain.place]
    assert registry.problems(plain.workspace, pointer.before[0]) == []


def test_a_warm_start_begins_with_what_was_made_before_any_generation(done: SmallChain) -> None:
    done.configure(retrain={"warm_start": True})
    path, why = generations.warm_start(done.chain("2026-W48"))
    assert path == done.folder("train") / "model.params"
    assert why.startswith("warm start from")


# --- current models that are no longer meant ----------------------------------------------------------------------


def test_a_current_model_can_be_retired_and_comes_back(done: SmallChain) -> None:
    make(done, "2026-W41")
    pointer = registry.read(_pointer(done))
    assert pointer
    renamed = _pointer(done).with_name("renamed.json")
    registry.set_current(renamed, msgspec.structs.replace(pointer.entry, since="2026"))
    with pytest.raises(PipelineError, match=r"several models are current.*Retire --name mini/renamed"):
        predict.resolve_model(done.workspace)
    workspace = done.chain().workspace
    with pytest.raises(PipelineError, match=r"--name mini/x: no model.*there are: mini/renamed, mini/tiny"):
        generations.retire(workspace, "mini/x")
    generations.retire(workspace, "mini/tiny")
    assert [path.name for path in workspace.currents()] == ["renamed.json"]
    assert done.chain("2026-W41").folder("train").is_dir()  # type: ignore[union-attr]
    (entry,) = trash.entries(workspace)
    assert entry.is_named("current/mini/tiny.json")
    trash.restore(workspace, entry)
    assert len(workspace.currents()) == 2
