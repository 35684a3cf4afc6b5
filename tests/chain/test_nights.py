"""A month of nightly retraining, simulated: what grows, and that a nightly Prune bounds it."""

from __future__ import annotations

import json
import os
import time

import pytest
from luigi_runs import SmallChain, assert_fails_clearly
from nights import age, nights

from pipeline import status
from pipeline.retraining import generations, retention
from pipeline.storage import locks
from pipeline.verify import verify

DAY = 24 * 3600


def test_a_month_of_nights_is_bounded_by_a_nightly_prune(done: SmallChain) -> None:
    workspace, most = done.chain().workspace, 0
    before = status.sizes(workspace)
    for _ in nights(done, 30):
        chain = done.chain()
        expired = retention.expired(chain, 3)
        moved, left = retention.prune(chain, expired, retention.unneeded_datasets(workspace, expired))
        assert not left
        most = max(most, len(moved))
    assert most == 2, "each night one generation, once a week a data set"
    assert [item.name for item in generations.find(workspace, done.chain().config)] == [
        "2026-01-30", "2026-01-29", "2026-01-28",
    ]  # fmt: skip
    datasets = [path.name for path in workspace.datasets.glob("mini-*")]
    assert len(datasets) == 2, "that of today, and that of the first run, which has no generation"

    # Nothing is deleted that is younger, worked on, or not disposable.
    before_deletion = status.sizes(workspace)
    assert before_deletion["trash"]["bytes"] > 10 * before["runs"]["bytes"]
    assert before_deletion["work"]["files"] > 30 * 6
    young = done.luigi("Prune", "--keep", "3", "--older-than", "30d", "--confirm")
    assert "permanently deleting 0 trash folders and 0 leftovers (0 B)" in young.output
    age(workspace, days=40)
    run = done.run("2026-01-30")
    for name in ("checkpoints/step-000000001.npz", "precision.json"):
        (run.work / name).parent.mkdir(parents=True, exist_ok=True)
        (run.work / name).write_text("left by a training that nobody resumed")
        os.utime(run.work / name, (time.time() - 40 * DAY,) * 2)
    failed = [workspace.runs / "mini-00000000/tiny-00000000@2026-01-05", workspace.datasets / "mini-00000000"]
    for folder in (*failed, workspace.runs / "mini-00000000/tiny-00000000@2026-01-31"):
        (folder / "train").mkdir(parents=True)
        (folder / "train/train.log").write_text("failed")
    for path in (path for folder in failed for path in (folder, *folder.rglob("*"))):
        os.utime(path, (time.time() - 40 * DAY,) * 2)
    with locks.hold(run.lock("train"), "train", wait=False):
        deleted = done.luigi("Prune", "--keep", "3", "--older-than", "30d", "--confirm")
        assert deleted.rc == 0, deleted.text
        assert (run.work / "precision.json").exists()
        assert run.lock("train").exists()
    assert not list(workspace.trash.iterdir())
    assert [path.name for path in workspace.runs.glob("mini-00000000/*")] == ["tiny-00000000@2026-01-31"], "is young"
    assert not failed[1].exists()
    assert len(list(workspace.locks.iterdir())) < 16

    after = json.loads(done.luigi("Status", "--sizes", "--json").output)["sizes"]
    assert after["runs"]["bytes"] < 4.1 * before["runs"]["bytes"]
    assert after["events"]["files"] == 1
    assert sum(kind["bytes"] for kind in after.values()) == sum(
        path.stat().st_size for path in done.workspace.rglob("*") if path.is_file()
    )
    assert not verify(workspace).damaged


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("--older-than 30", "--older-than: found 0:00:30, expected 1d to 36500d, e.g. 30d"),
        ("--older-than 0d", "--older-than: found 0:00:00, expected 1d to 36500d"),
        ("--older-than 999999d", "--older-than: found 999999 days, 0:00:00, expected 1d to 36500d"),
        ("--keep 0", "--keep: found 0, expected at least 1"),
    ],
)
def test_what_prune_would_never_keep_or_never_delete_is_refused(done: SmallChain, given: str, found: str) -> None:
    assert_fails_clearly(done.luigi("Prune", *given.split(), "--confirm"), 2, found)
