"""Fetching and publishing around a stage's process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from luigi_runs import CHECKOUT

from pipeline import stage_sync
from pipeline.config import load
from pipeline.process.parent import Stopped
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain


@pytest.mark.parametrize("finished", [True, False])
def test_a_gate_that_finished_before_it_could_be_stopped_still_serves_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    chain = Chain(Workspace(tmp_path), load(CHECKOUT / "config" / "quickstart.yaml"), "2026-W48")
    served: list[Any] = []
    monkeypatch.setattr(stage_sync, "_serve", lambda *about: served.append(about))
    with pytest.raises(Stopped), stage_sync.synced(chain, "promote", {}):
        raise Stopped("promote: stopped", signal.SIGTERM, finished)
    assert len(served) == finished
