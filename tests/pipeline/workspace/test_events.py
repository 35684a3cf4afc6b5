"""The event log: a line cut off by a power cut or a full disk affects no other event."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from pipeline.files import READ_LIMIT
from pipeline.workspace import Workspace, events


def test_events_after_a_torn_line_are_read(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    events.record(workspace, "started")
    os.truncate(workspace.events, workspace.events.stat().st_size - 5)
    for name in ("failed", "finished"):
        events.record(workspace, name)
    assert [event["event"] for event in events.read(workspace)] == ["failed", "finished"]
    assert workspace.events.read_bytes().count(b"\n") == 3


def test_a_partially_written_event_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workspace = Workspace(tmp_path)
    events.record(workspace, "started")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (workspace.events.stat().st_size + 9, limits[1]))
    try:
        events.record(workspace, "failed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "event 'failed' was not recorded" in caplog.text
    assert "the disk is full" in caplog.text
    events.record(workspace, "finished")
    assert [event["event"] for event in events.read(workspace)] == ["started", "finished"]


def test_an_unreadable_log_is_empty_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workspace = Workspace(tmp_path)
    assert events.read(workspace) == []
    assert not caplog.text
    workspace.events.touch()
    os.truncate(workspace.events, READ_LIMIT + 1)
    assert events.read(workspace) == []
    assert f"{workspace.events}: cannot read the event log: 268 MB, far too large" in caplog.text


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    events.record(Workspace(tmp_path), "started")
    assert (tmp_path / "elsewhere").read_bytes() == b""
