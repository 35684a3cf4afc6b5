"""Status: what is done, which generations exist, which model is current; what it shows when files are damaged."""

from __future__ import annotations

import datetime
import json
import os

import pytest
from luigi_runs import SmallChain

from pipeline import status
from pipeline.files import read_json, write_json
from pipeline.retraining import generations, periods, registry
from pipeline.workspace import manifest
from pipeline.workspace.freshness import Chain


def _promoted(chain: Chain) -> registry.Entry:
    run = chain.run()
    assert run
    entry = registry.entry_of(run)
    assert entry
    registry.set_current(chain.workspace.current(chain.config), entry)
    return entry


def test_a_script_can_tell_whether_a_chain_is_done(finished: SmallChain, fresh: SmallChain) -> None:
    done, new = status.gather(finished.chain()), status.gather(fresh.chain())
    assert done["done"] is True
    assert [stage["state"] for stage in done["stages"]] == ["done"] * 5
    assert done["generations"] == []
    assert new["done"] is False
    assert [stage["state"] for stage in new["stages"]] == ["will run"] * 5
    assert json.loads(json.dumps(done)) == done


def test_status_without_a_generation_lists_the_existing_ones(done: SmallChain) -> None:
    plain, week = done.run(), done.run("2026-W48")
    plain.root.rename(week.root)
    entry = _promoted(done.chain("2026-W48"))
    facts = status.gather(done.chain())
    assert not facts["done"]
    assert [(item["name"], item["current"]) for item in facts["generations"]] == [("2026-W48", True)]
    text = "\n".join(status.lines(facts, "x.yaml"))
    assert (
        f"generations (--generation NAME shows one): 2026-W48 (not decided yet, current, {entry.accuracy:.2%})" in text
    )
    assert f"the current model is {entry.run}" in text
    assert status.gather(done.chain("2026-W48"))["done"]


def test_status_says_what_retrain_will_make_next_and_when(done: SmallChain, monkeypatch: pytest.MonkeyPatch) -> None:
    done.configure(retrain={"new_seed": True})
    plain, week = done.run(), done.run("2026-W48")
    assert status.gather(done.chain())["next_generation"] is None, "nothing was retrained yet"
    plain.root.rename(week.root)
    _promoted(done.chain("2026-W48"))
    monkeypatch.setattr(generations, "unfinished", lambda chain: [] if chain.generation == "2026-W48" else ["train: x"])
    for today, name, due, line in (
        ("2026-11-26", "2026-W49", "2026-11-30", "due 2026-11-30"),
        ("2026-12-01", "2026-W49", "2026-12-01", "due now: there is no generation 2026-W49 yet"),
    ):
        monkeypatch.setattr(periods, "today", lambda today=today: datetime.date.fromisoformat(today))
        facts = status.gather(done.chain())
        assert (facts["next_generation"]["name"], facts["next_generation"]["due"]) == (name, due)
        assert f"  next generation: {name}, {line}" in status.lines(facts, "x.yaml")
    assert status.gather(done.chain("2026-W48"))["next_generation"] is None


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_pointer_is_reported_and_hides_nothing_else(done: SmallChain, content: str) -> None:
    _promoted(done.chain())
    pointer = done.chain().workspace.current(done.chain().config)
    pointer.write_text(content)
    facts = status.gather(done.chain())
    assert facts["done"]
    assert facts["current"] is None
    assert f"{pointer}: damaged" in facts["current_problem"]
    assert any("the current model is unknown" in line for line in status.lines(facts, "x.yaml"))


def test_huge_files_and_values_of_wrong_types_do_not_break_status(done: SmallChain) -> None:
    chain = done.chain("2026-W48")
    run = done.run("2026-W48")
    done.run().root.rename(run.root)
    _promoted(chain)
    run.stage("promote").mkdir()
    decision = run.stage("promote") / "decision.json"
    for value in ({"outcome": 5}, {"outcome": ["promoted"]}, {"outcome": "promoted", "reason": 5}):
        write_json(decision, value)
        manifest.write(run.stage("promote"), "promote", ["decision.json"], {}, {})
        (known,) = status.gather(done.chain())["generations"]
        assert known["outcome"] is None
    evaluate = read_json(run.stage("evaluate") / "manifest.json")
    assert evaluate
    evaluate["details"]["accuracy"] = ["0.5"]
    write_json(run.stage("evaluate") / "manifest.json", evaluate)
    assert any("2026-W48 (not decided yet, current)" in line for line in _lines(done))
    os.truncate(chain.workspace.current(chain.config), 1 << 40)
    assert any("the current model is unknown: " in line and "far too large" in line for line in _lines(done))
    os.truncate(chain.workspace.source_pointer(chain.config.data), 1 << 40)
    assert any("dataset   will run  no data set from" in line for line in _lines(done))


def _lines(small: SmallChain) -> list[str]:
    return status.lines(status.gather(small.chain()), "x.yaml")
