"""How the processes of a distributed training find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StageFailed
from pipeline.training import rendezvous


def test_a_folder_full_of_names_of_ports_ends_the_search_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    with pytest.raises(StageFailed, match="/tmp: no free port; remove the files named after ports"):
        rendezvous.free_port("127.0.0.1")


def test_a_host_to_which_there_is_no_way_does_not_end_the_search_for_an_own_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DMLC_NODE_HOST", raising=False)
    assert rendezvous.own_address("nowhere.invalid") == "127.0.0.1"
