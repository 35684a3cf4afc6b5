"""TensorBoard's event files: written on request, and complete after resuming or a kill."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

import pytest
from luigi_runs import SmallChain

from pipeline.errors import PipelineError
from pipeline.training import tensorboard

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "validation_loss": None, "learning_rate": 0.1},
    {"epoch": 2, "train_loss": 1.5, "validation_loss": 1.75, "learning_rate": 0.01},
]


@pytest.fixture
def events() -> None:
    pytest.importorskip("tensorboardX", reason="the optional package tensorboardX is not installed")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves (name -> step -> value) that a reader sees in a folder's event files, without truncated events."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, position = file.read_bytes(), 0
        while position + 12 <= len(content):
            length, checksum = struct.unpack_from("<QI", content, position)
            assert checksum == masked_crc32c(content[position : position + 8])
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 12 + length + 4
            if event.session_log.status == SessionLog.START:  # readers then forget this step and later ones
                found = {tag: {n: v for n, v in steps.items() if n < event.step} for tag, steps in found.items()}
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {}), "an epoch appears twice"
                found[value.tag][event.step] = value.simple_value
    return found


@pytest.mark.usefixtures("events")
def test_the_curves_contain_the_history_without_missing_values(tmp_path: Path) -> None:
    tensorboard.Curves(tmp_path).write(HISTORY)
    found = scalars(tmp_path)
    assert found["loss/training"] == {1: 2.0, 2: 1.5}
    assert found["loss/validation"] == {2: 1.75}
    assert found["learning_rate"] == pytest.approx({1: 0.1, 2: 0.01})


@pytest.mark.usefixtures("events")
def test_every_epoch_appears_once_across_processes_even_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    tensorboard.Curves(tmp_path).write(HISTORY)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with open(path, "ab") as killed:
        killed.write(before[:10])
    monkeypatch.setattr(time, "time", lambda: 2000.0)
    second = tensorboard.Curves(tmp_path)
    for length in (1, 2, 2):
        second.write([{**row, "train_loss": 3.0} for row in HISTORY[:length]])
        assert scalars(tmp_path)["loss/training"] == {epoch: 3.0 for epoch in range(1, length + 1)}
    assert path.read_bytes() == before + before[:10]


@pytest.mark.usefixtures("events")
def test_a_training_writes_them_on_request_and_resuming_keeps_every_epoch(prepared: SmallChain) -> None:
    prepared.configure(training__tensorboard=True)
    prepared.luigi("TrainVGG")
    prepared.configure(training__epochs=3)
    prepared.luigi("TrainVGG")
    run = prepared.chain().run()
    assert run is not None
    assert sorted(scalars(run.curves)["accuracy/training"]) == [1, 2, 3]
    assert not any("tensorboard" in name for name in prepared.manifest("train")["files"])


def test_they_are_off_by_default_and_the_key_neither_retrains_nor_is_reported(done: SmallChain) -> None:
    run = done.chain().run()
    assert run is not None
    assert not run.curves.exists()
    done.configure(training__tensorboard=True)
    assert done.report().ran == []
    assert "config changed" not in done.status()


def test_a_missing_package_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(PipelineError, match="pip install tensorboardX"):
        tensorboard.Curves(tmp_path)
