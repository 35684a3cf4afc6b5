"""TensorBoard's event files: written when asked for, whole after every way in which a training goes on."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from luigi_runs import SmallChain

from pipeline import tensorboard
from pipeline.errors import PipelineError

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "validation_loss": None, "learning_rate": 0.1},
    {"epoch": 2, "train_loss": 1.5, "validation_loss": 1.75, "learning_rate": 0.01},
]


@pytest.fixture
def events() -> None:
    pytest.importorskip("tensorboardX", reason="the optional package tensorboardX is not installed")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves in the one event file of a folder: name -> step -> value."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.out.tfevents.*")
    content, position, found = file.read_bytes(), 0, {}
    while position < len(content):  # a record: length, its checksum, the event, its checksum
        (length,) = struct.unpack_from("<Q", content, position)
        event = Event.FromString(content[position + 12 : position + 12 + length])
        position += 12 + length + 4
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@pytest.mark.usefixtures("events")
def test_the_curves_carry_the_history_and_leave_out_what_is_missing(tmp_path: Path) -> None:
    tensorboard.write(tmp_path, HISTORY)
    found = scalars(tmp_path)
    assert found["loss/training"] == {1: 2.0, 2: 1.5}
    assert found["loss/validation"] == {2: 1.75}
    assert found["learning_rate"] == pytest.approx({1: 0.1, 2: 0.01})


@pytest.mark.usefixtures("events")
def test_writing_again_replaces_the_file_so_that_no_epoch_appears_twice(tmp_path: Path) -> None:
    for length in (1, 2, 2):
        tensorboard.write(tmp_path, HISTORY[:length])
    assert scalars(tmp_path)["loss/training"] == {1: 2.0, 2: 1.5}


@pytest.mark.usefixtures("events")
def test_a_training_writes_them_when_asked_and_going_on_keeps_every_epoch(prepared: SmallChain) -> None:
    prepared.configure(training__tensorboard=True)
    prepared.luigi("TrainVGG")
    prepared.configure(training__epochs=3)
    prepared.luigi("TrainVGG")
    run = prepared.chain().run()
    assert run is not None
    assert sorted(scalars(run.curves)["accuracy/training"]) == [1, 2, 3]
    assert not any("tensorboard" in name for name in prepared.manifest("train")["files"])


def test_they_are_off_by_default_and_the_key_neither_retrains_nor_drifts(done: SmallChain) -> None:
    run = done.chain().run()
    assert run is not None
    assert not run.curves.exists()
    done.configure(training__tensorboard=True)
    assert done.report().ran == []
    assert "drift" not in done.status()


def test_a_missing_package_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(PipelineError, match="pip install tensorboardX"):
        tensorboard.write(tmp_path, HISTORY)
