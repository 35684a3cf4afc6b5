"""How the processes of a distributed training find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StageFailed
from pipeline.training import rendezvous


def test_a_folder_full_of_names_of_ports_ends_the_search_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    with pytest.raises(StageFailed, match="/tmp: no free port; remove the files named after one"):
        rendezvous.free_port("127.0.0.1")
