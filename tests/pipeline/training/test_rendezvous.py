"""How the processes of a distributed training find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StageFailed
from pipeline.training import rendezvous


def test_free_port_fails_if_every_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    with pytest.raises(StageFailed, match="/tmp: no free port; remove the files named after ports"):
        rendezvous.free_port("127.0.0.1")


def test_own_address_is_loopback_without_a_route_to_the_other_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DMLC_NODE_HOST", raising=False)
    assert rendezvous.own_address("nowhere.invalid") == "127.0.0.1"
