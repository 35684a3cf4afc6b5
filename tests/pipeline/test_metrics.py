"""The metrics file: what Prometheus reads from it, and what survives when it is replaced."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from luigi_runs import SmallChain

from pipeline import metrics, status
from pipeline.errors import AlreadyRunning, WorkspaceError
from pipeline.retraining import registry, rollback
from pipeline.storage import locks
from pipeline.workspace import Workspace, events

parser = pytest.importorskip("prometheus_client.parser")


def _read(path: Path) -> dict[tuple[str, ...], float]:
    """Name and labels (without the workspace's) -> value, as Prometheus reads them."""
    families = list(parser.text_string_to_metric_families(path.read_text()))
    assert all(family.documentation for family in families)
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = [text for name, text in sample.labels.items() if name != "workspace"]
        assert found.setdefault((sample.name.removeprefix("vgg_"), *labels), sample.value) == sample.value
    return found


def _promote(small: SmallChain, generation: str, accuracy: float) -> registry.Pointer:
    """Make the finished run current under the name of a generation."""
    run = small.run()
    entry = registry.entry_of(run)
    assert entry
    changed = {"run": f"{run.place}@{generation}", "generation": generation, "accuracy": accuracy}
    entry = msgspec.structs.replace(entry, **changed)
    return registry.set_current(run.workspace.current(small.chain().config), entry)


def test_the_file_has_current_models_gate_decisions_and_sizes(done: SmallChain, tmp_path: Path) -> None:
    workspace, path = Workspace(done.workspace), tmp_path / "node" / "vgg.prom"
    for name, accuracy in (("2026-W47", 0.25), ("2026-W48", 0.75)):
        current = _promote(done, name, accuracy)
        events.record(workspace, "promoted", dataset="mini", architecture="tiny")
    events.record(workspace, "refused", dataset="mini", architecture="other")
    metrics.write(path, workspace)
    found = _read(path)
    assert found["model_info", "mini", "tiny", "2026-W48", current.run] == 1
    assert [name for name, *_ in found].count("model_info") == 1
    assert found["model_accuracy", "mini", "tiny"] == 0.75
    assert abs(time.time() - found["model_current_since_timestamp_seconds", "mini", "tiny"]) < 300
    assert found["generations_total", "mini", "tiny", "promoted"] == 2
    assert found["generations_total", "mini", "tiny", "refused"] == 0
    assert found["generations_total", "mini", "other", "refused"] == 1
    assert found["workspace_bytes", "runs"] == status.sizes(workspace)["runs"]["bytes"] > 0
    assert path.stat().st_mode & 0o444 == 0o444, "node_exporter is another user"


def test_the_last_success_of_each_model_is_kept_until_it_is_retired(done: SmallChain, tmp_path: Path) -> None:
    workspace, path = Workspace(done.workspace), tmp_path / "vgg.prom"
    success = ("retrain_last_success_timestamp_seconds", "mini", "tiny")
    _promote(done, "2026-W48", 0.5)
    metrics.write(path, workspace)
    assert success not in _read(path)
    metrics.write(path, workspace, done.chain().config)
    first = _read(path)[success]
    path.write_text(path.read_text().replace(str(int(first)), "1700000000"))
    metrics.write(path, workspace)
    assert _read(path)[success] == 1_700_000_000
    metrics.write(path, workspace, done.chain().config)
    assert _read(path)[success] >= first
    rollback.retire(workspace, "mini/tiny")
    metrics.write(path, workspace)
    assert success not in _read(path)
    _promote(done, "2026-W49", 0.5)
    metrics.write(path, workspace, done.chain().config)
    workspace.current(done.chain().config).write_text("{")  # damaged, not retired
    metrics.write(path, workspace)
    assert success in _read(path)
    path.write_bytes(b"\xff{")
    workspace.current(done.chain().config).write_text("{")  # damaged, like the file that is replaced
    metrics.write(path, workspace)
    assert ("workspace_bytes", "runs") in _read(path)


def test_a_workspace_name_with_special_characters_is_escaped(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / 'a "b"\\n\nc')
    events.record(workspace, "refused", dataset="mini", architecture="tiny")
    metrics.write(tmp_path / "vgg.prom", workspace)
    (family, *_) = [
        family
        for family in parser.text_string_to_metric_families((tmp_path / "vgg.prom").read_text())
        if family.name == "vgg_generations"
    ]
    assert family.samples[0].labels["workspace"] == str(workspace.root)


def test_odd_file_names_and_damaged_log_lines_do_not_hide_other_metrics(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "artifacts")
    events.record(workspace, "refused", dataset="mini", architecture="tiny")
    (workspace.root / os.fsdecode(b"\xff")).touch()
    with workspace.events.open("a") as log:
        log.write('{"event": "promoted", "dataset": "\\ud800", "architecture": "tiny"}\n' + "[" * 100_000 + "\n")
    metrics.write(tmp_path / "vgg.prom", workspace)
    found = _read(tmp_path / "vgg.prom")
    assert found["generations_total", "mini", "tiny", "refused"] == 1
    assert found["generations_total", "?", "tiny", "promoted"] == 1
    assert found["workspace_bytes", "?"] == 0


def test_anything_but_a_regular_file_is_refused_and_a_link_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(WorkspaceError, match="is not a regular file"):
            metrics.write(path, Workspace(tmp_path / "ws"))
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link").symlink_to("vgg.prom")
    metrics.write(tmp_path / "link", Workspace(tmp_path / "ws"))
    assert (tmp_path / "vgg.prom").is_file()
    assert (tmp_path / "link").is_symlink()


def test_a_command_does_not_wait_for_ever_for_one_that_hangs(
    done: SmallChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "LOCK_SECONDS", 0.2)
    workspace = done.chain().workspace
    with locks.hold(workspace.lock("metrics"), "writing the metrics", wait=False), pytest.raises(AlreadyRunning):
        metrics.write(tmp_path / "vgg.prom", workspace)
