"""Nights of retraining on a folder of images that grows, also while a training runs; the real command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from luigi_runs import Result
from nightly_job import ImageFolder


class Nights(ImageFolder):
    """A folder of images that is retrained on."""

    def retrain(self, date: str, *arguments: str) -> Result:
        result = self.luigi("Retrain", "--date", date, *arguments)
        assert result.rc == 0, result.text
        return result


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    chain = Nights(tmp_path / "nights", ["blue", "green", "red"])
    chain.configure(retrain={"every": "day", "tolerance": 0.9, "keep": 1})
    return chain


def test_a_folder_that_grows_makes_a_generation_a_night_and_old_data_sets_go(nights: Nights) -> None:
    first = nights.retrain("2026-11-01")
    assert "data set ready: parts; " in first.log
    old = nights.folder("dataset").name

    # The second night there are more images, and one arrives at the start of the training: that is for the third night.
    nights.arrive("red", 14, 100)
    os.rename(nights.root / "parts/red/red-0.png", nights.root / "parts/blue/was-red.png")
    changed = "14 more images in class red, labels of 1 changed"
    assert f"parts has changed: {changed}" in nights.status()
    nights.arrive("green", 1, 900, place="late")
    command = f'mv {nights.root}/late/green/green-900.png {nights.root}/parts/green/; exec "$@"'
    nights.configure(launcher=["sh", "-c", command, "sh"])
    second = nights.retrain("2026-11-02", "--workers", "2")
    assert second.ran == first.ran
    assert (
        f"is due: there is no generation 2026-11-02 yet; dataset: {nights.root}/parts has changed: {changed}"
        in second.log
    )
    assert f"changed since {old}: {changed}" in second.log
    nights.configure(launcher=[])
    now = nights.folder("dataset").name
    assert now != old
    report = nights.folder("report", "2026-11-02")
    assert json.loads((report / "report.json").read_text())["dataset"]["change"] == {"since": old, "what": changed}
    for page in ("index.html", "report.md"):
        assert changed in (report / page).read_text()
    status = nights.status("--generation", "2026-11-02")
    assert f"the data set has changed since {old}: {changed}" in status
    assert "parts has changed: 1 more image in class green" in status

    # On the third, the first generation is no longer kept, and nothing needs its data set.
    third = nights.retrain("2026-11-03")
    assert f"changed since {now}: 1 more image in class green" in third.log
    offered = nights.luigi("Prune", "--keep", "1").output
    assert "would move generation 2026-11-01" in offered
    assert f"would move data set {old} (" in offered
    done = nights.luigi("Prune", "--keep", "1", "--confirm")
    assert f"/datasets/{old}" in done.output
    assert not [path for path in nights.workspace.glob(f"*/{old}") if path.parts[-2] in ("runs", "work")]
    assert {path.name for path in nights.workspace.glob("datasets/parts-*")} == {now, nights.folder("dataset").name}
    assert nights.luigi("Restore", "--item", f"datasets/{old}", "--confirm").rc == 0
    assert (nights.workspace / "datasets" / old / "manifest.json").exists()
