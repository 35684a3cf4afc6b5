"""An interrupted training equals an uninterrupted one byte for byte; where it cannot, it says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_runs import EPOCHS, STEPS, Place, flip_a_bit_of_the_momentum, marked
from luigi_runs import VGG8

from pipeline import training
from pipeline.training import checkpoint

Undisturbed = Callable[..., str]


needs_bfloat16 = pytest.mark.skipif(
    "avx512bw" not in Path("/proc/cpuinfo").read_text(), reason="MXNet computes bfloat16 only on CPUs with AVX-512"
)

MUON_ON_VGG8 = {
    "architecture": VGG8["architecture"],
    **{key: VGG8["training"][key] for key in ("optimizer", "momentum", "initializer", "augmentation")},
}


def stop_gracefully(place: Place) -> None:
    """Send SIGTERM in the middle of an epoch."""
    command = place.start()
    step = place.newest_step()
    command.wait_for(lambda: place.newest_step() > step + 10, "some steps")
    command.send(signal.SIGTERM)
    command.finish(143)


def kill_luigi(place: Place) -> None:
    """kill -9 only the luigi command; its child ends by itself."""
    command = place.start()
    step = place.newest_step()
    command.wait_for(lambda: place.newest_step() > step + 10, "some steps")
    command.kill()


def pull_the_plug(place: Place) -> None:
    """kill -9 all processes at once."""
    command = place.start()
    step = place.newest_step()
    command.wait_for(lambda: place.newest_step() > step + 10, "some steps")
    for pid in [command.process.pid, *marked(command.mark)]:
        os.kill(pid, signal.SIGKILL)
    command.process.wait()
    command.wait_until_gone()


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param({}, id="float32"),
        pytest.param({"precision": "bfloat16"}, id="bfloat16", marks=needs_bfloat16),
        pytest.param(
            {"device": "cpu:0,1", "optimizer": "sgd", "schedule": {"kind": "cosine", "warmup_epochs": 1}},
            id="two contexts",
        ),
        pytest.param(MUON_ON_VGG8, id="muon on the shape of vgg8"),
        pytest.param(
            {**MUON_ON_VGG8, "precision": "bfloat16", "device": "cpu:0,1"},
            id="muon on the shape of vgg8, bfloat16, two contexts",
            marks=needs_bfloat16,
        ),
    ],
)
def test_a_training_stopped_killed_and_unplugged_gives_the_bytes_of_an_undisturbed_one(
    place: Place, undisturbed: Undisturbed, conditions: dict[str, Any]
) -> None:
    place.configure(**conditions)
    stop_gracefully(place)
    pull_the_plug(place)
    kill_luigi(place)
    assert place.run().code == 0
    assert place.digest() == undisturbed(**conditions)
    assert place.history() == list(range(1, EPOCHS + 1))
    details = place.manifest()["details"]
    assert (details["resumed"], details["exact"], details["inexact"]) == (3, True, [])
    assert not place.checkpoints()


#: A training that is told to stop when it begins to validate. Runs in a child process: MXNet reads the number of
#: threads when it is loaded, and this process may already have loaded it.
STOPPED_WHILE_VALIDATING = """
import sys
from pathlib import Path

from pipeline.process import child as stage
from pipeline import training
from pipeline.workspace.freshness import Chain
from pipeline.config import load
from pipeline.training.network import Network
from pipeline.workspace import Workspace

reporter, real = stage.Reporter(), Network.evaluate

def evaluate(self, *arguments, **more):
    reporter.commands.add("stop")
    return real(self, *arguments, **more)

Network.evaluate = evaluate
training.train(Chain(Workspace(Path(sys.argv[1])), load(sys.argv[2])), reporter)
"""


def test_stopped_while_validating_the_row_of_that_epoch_is_written_once(place: Place, undisturbed: Undisturbed) -> None:
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_VALIDATING, str(place.workspace), str(place.folder / "run.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(training.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert re.search(f"Interrupted: .*step {STEPS} of {STEPS}", stopped.stderr), stopped.stderr
    assert place.run().code == 0
    assert place.history() == list(range(1, EPOCHS + 1))
    assert place.digest() == undisturbed()


def test_resuming_with_other_threads_and_another_device_works_and_is_reported_everywhere(place: Place) -> None:
    place.configure(epochs=4)
    stop_gracefully(place)
    place.configure(epochs=4, device="cpu:0,1")
    command = place.run("Report", OMP_NUM_THREADS="2")
    assert command.code == 0, command.output
    details = place.manifest()["details"]
    assert details["exact"] is False
    assert place.history() == [1, 2, 3, 4]
    for number, said in enumerate(("resumed with 2 threads instead of 1", "resumed on cpu:0,1 instead of cpu")):
        assert said in details["inexact"][number]
        assert f"not bit-reproducible: {said}" in place.log()
        assert f"not bit-reproducible: {said}" in command.output
        assert said in (place.stage("report") / "report.json").read_text()
        assert said in (place.stage("report") / "index.html").read_text()


@pytest.mark.parametrize("device", ["cpu", "cpu:1,2"])
def test_raised_epochs_give_the_bytes_of_one_long_run(place: Place, undisturbed: Undisturbed, device: str) -> None:
    kept = {"kind": "step", "warmup_epochs": 2, "factor": 0.3}
    schedule = {"device": device, "schedule": {**kept, "milestones": [3, 8]}}
    place.configure(epochs=5, device=device, schedule={**kept, "milestones": [3]})
    assert place.run().code == 0
    place.configure(**schedule)
    stop_gracefully(place)
    assert place.run().code == 0
    assert place.digest() == undisturbed(**schedule)
    assert place.history() == list(range(1, EPOCHS + 1))
    assert place.manifest()["details"]["exact"] is True


def test_raised_epochs_in_batches_of_another_size_come_to_the_end_of_the_schedule(place: Place) -> None:
    for keys in ({"epochs": 3}, {"epochs": 5, "batch_size": 8}):
        place.configure(schedule={"kind": "triangle"}, **keys)
        assert place.run().code == 0
    columns, *_, last = (place.stage("train") / "history.csv").read_text().splitlines()
    row = dict(zip(columns.split(","), last.split(","), strict=True))
    assert (row["epoch"], float(row["learning_rate"]) < 0.001) == ("5", True), row


def test_raised_epochs_under_a_schedule_that_stretches_over_them_are_repeatable_and_called_inexact(
    place: Place, tmp_path: Path
) -> None:
    digests = []
    other = Place(tmp_path / "other", place.archive)
    shutil.copytree(place.workspace, other.workspace)
    for one in (place, other):
        one.configure(epochs=3, schedule={"kind": "triangle"})
        assert one.run().code == 0
        one.configure(epochs=5, schedule={"kind": "triangle"})
        command = one.run()
        assert command.code == 0
        digests.append(one.digest())
    assert digests[0] == digests[1]
    details = place.manifest()["details"]
    assert details["exact"] is False
    assert "training.epochs changed from 3 to 5" in details["inexact"][0]
    assert "not bit-reproducible: training.epochs changed from 3 to 5" in command.output


def test_a_damaged_newest_checkpoint_costs_a_line_and_the_steps_since_the_one_before(
    place: Place, undisturbed: Undisturbed
) -> None:
    stop_gracefully(place)
    before, newest = place.checkpoints()
    flip_a_bit_of_the_momentum(newest)
    command = place.run()
    assert f"{newest.name}: damaged checkpoint" in command.output
    assert f"resumed from {before.name}" in command.output
    assert place.digest() == undisturbed()


def test_with_every_checkpoint_damaged_it_starts_again_and_keeps_new_checkpoints(
    place: Place, undisturbed: Undisturbed
) -> None:
    stop_gracefully(place)
    for path in place.checkpoints():
        path.write_bytes(path.read_bytes()[:100])
    stop_gracefully(place)
    assert place.newest_step() > 10
    command = place.run()
    assert "resumed from step-" in command.output
    assert place.digest() == undisturbed()


def change_meta(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(arrays["meta"].tobytes())
    change(meta)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path.with_suffix(""), **arrays)


def test_a_checkpoint_from_before_an_upgrade_that_brought_a_key_is_gone_on_from(
    place: Place, undisturbed: Undisturbed
) -> None:
    stop_gracefully(place)
    for path in place.checkpoints():
        change_meta(path, lambda meta: meta["identity"]["training"].pop("label_smoothing"))
    command = place.run()
    assert "resumed from step-" in command.output
    assert place.digest() == undisturbed()


def test_a_checkpoint_of_another_schema_is_refused_and_kept(place: Place) -> None:
    stop_gracefully(place)
    newest = place.checkpoints()[-1]
    change_meta(newest, lambda meta: meta.update(schema=checkpoint.SCHEMA + 1))
    command = place.run()
    assert command.code == 30
    assert f"checkpoint of schema {checkpoint.SCHEMA + 1}, this version reads {checkpoint.SCHEMA}" in command.output
    assert newest.exists()


def test_the_work_folder_can_be_deleted_while_it_is_stopped_and_while_it_runs(
    place: Place, undisturbed: Undisturbed
) -> None:
    stop_gracefully(place)
    shutil.rmtree(place.workspace / "work")
    command = place.start()
    command.wait_for(lambda: place.newest_step() > 30, "some steps")
    shutil.rmtree(place.workspace / "work", ignore_errors=True)
    command.finish(0)
    assert place.digest() == undisturbed()
    assert "Traceback" not in command.output
