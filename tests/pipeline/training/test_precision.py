"""What `precision: auto` chooses, and that the choice for a run never changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import runtime
from pipeline.config import Architecture, Training
from pipeline.errors import DeviceError
from pipeline.storage import locks
from pipeline.training import precision
from pipeline.workspace import Workspace, manifest

TINY = Architecture(name="tiny", conv_arch=[(1, 4), (1, 8)], batch_norm=True, dense=[], classes=10)


@pytest.fixture
def run(tmp_path: Path):
    return Workspace(tmp_path).run("sample-00000000", "tiny-00000000")


@pytest.fixture
def cpu():
    return runtime.devices("cpu")


def auto() -> Training:
    return Training(epochs=1, precision="auto", batch_size=8)


def test_a_configured_precision_is_used_as_is(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime.device, "cpu_flags", lambda: {"avx512bw"})
    assert precision.choose(TINY, Training(epochs=1, precision="bfloat16"), cpu, run) == ("bfloat16", "as configured")


@pytest.mark.parametrize(
    ("precision_name", "message"),
    [
        ("bfloat16", "bfloat16, which needs a processor with AVX-512"),
        ("float16", "float16, which MXNet does not train on a CPU"),
    ],
)
def test_a_precision_that_the_processor_does_not_support_is_refused(run, cpu, monkeypatch, precision_name, message):
    monkeypatch.setattr(runtime.device, "cpu_flags", lambda: {"avx2"})
    with pytest.raises(DeviceError, match=f"training.precision: found {message}"):
        precision.choose(TINY, Training(epochs=1, precision=precision_name), cpu, run)


def test_auto_is_float32_if_the_processor_has_no_bfloat16(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: False)
    assert precision.choose(TINY, auto(), cpu, run) == ("float32", "auto: this processor has no bfloat16 instructions")


@pytest.fixture
def measure(run, cpu, monkeypatch):
    """Chooses on a processor that trains 100 images/s in float32 and `half` in bfloat16 (None if it fails)."""
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    def measure(half):
        speeds = {"float32": 100.0} | ({"bfloat16": half} if half else {})
        monkeypatch.setattr(precision, "_speeds", lambda *_: speeds)
        return precision.choose(TINY, auto(), cpu, run)

    return measure


@pytest.mark.parametrize(("half", "expected"), [(200.0, "bfloat16"), (104.0, "float32")])
def test_auto_chooses_bfloat16_only_if_it_measures_faster(measure, half, expected):
    assert measure(half)[0] == expected


def test_a_failed_measurement_is_not_recorded(measure):
    assert measure(None) == ("float32", "auto: bfloat16 could not be measured")
    assert measure(200.0)[0] == "bfloat16"


def test_auto_decides_once_for_a_run_and_again_on_another_processor(measure, monkeypatch):
    assert measure(200.0)[0] == "bfloat16"
    assert measure(100.0) == ("bfloat16", "auto: as before on this processor")
    monkeypatch.setattr(runtime, "cpu_name", lambda: "another")
    assert measure(100.0)[0] == "float32"


def test_auto_keeps_the_precision_of_a_finished_run(run, measure):
    folder = run.stage("train")
    folder.mkdir(parents=True)
    details = {"cpu": runtime.cpu_name(), "threads": 2, "device": "cpu", "precision": "float32"}
    manifest.write(folder, "train", (), {}, details)
    assert measure(200.0)[0] == "float32"


def test_the_measurement_trains_the_network_in_its_own_process():
    speeds = precision._speeds(TINY, 8)
    # If MXNet does not support bfloat16 here, it is missing, and the choice is float32.
    assert list(speeds) == ["float32", "bfloat16"][: 2 if "avx512bw" in runtime.cpu_flags() else 1]
    assert all(speed > 0 for speed in speeds.values())


@pytest.fixture
def early(monkeypatch):
    """A measurement process that was started early."""
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    precision.start_early()
    (process,) = precision._early
    return process


def test_an_early_measurement_is_used(early):
    assert "float32" in precision._speeds(TINY, 8)
    assert early.returncode is not None
    assert not precision._early


def test_an_early_measurement_ends_if_it_is_not_needed(run, cpu, early):
    assert precision.choose(TINY, Training(epochs=1, precision="float32"), cpu, run) == ("float32", "as configured")
    assert early.returncode is not None
    assert not precision._early


def test_an_early_measurement_ends_with_its_parent(early):
    precision._early.clear()
    assert early.communicate("") == ("", None)
    assert early.returncode == 0


def test_a_measurement_ends_when_its_training_is_killed():
    lines = (
        "import json, os, sys; from pipeline.training import precision; process = precision._start(); "
        "json.dump({'architecture': {'name': 'wide', 'conv_arch': [[8, 512]], 'classes': 10}, 'batch_size': 128}, "
        "process.stdin); process.stdin.close(); print(process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    root = str(Path(precision.__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", lines], env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    measuring = int(killed.stdout)
    deadline = time.monotonic() + 30  # such a network takes much longer
    while not locks.is_gone(measuring) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert locks.is_gone(measuring)
