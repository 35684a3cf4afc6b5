"""What `precision: auto` decides, and that it never changes its mind about a run."""

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


def auto(**keys) -> Training:
    return Training(epochs=1, precision="auto", batch_size=8, **keys)


def test_a_configured_precision_is_taken_as_it_is(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime.device, "cpu_flags", lambda: {"avx512bw"})
    assert precision.choose(TINY, Training(epochs=1, precision="bfloat16"), cpu, run) == ("bfloat16", "as configured")


def test_bfloat16_on_a_processor_that_cannot_is_refused(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime.device, "cpu_flags", lambda: {"avx2"})
    with pytest.raises(DeviceError, match="needs a processor with AVX-512"):
        precision.choose(TINY, Training(epochs=1, precision="bfloat16"), cpu, run)


def test_float16_on_a_cpu_is_refused(run, cpu):
    with pytest.raises(DeviceError, match="float16, which MXNet does not train on a CPU"):
        precision.choose(TINY, Training(epochs=1, precision="float16"), cpu, run)


def test_auto_is_float32_where_the_processor_has_no_bfloat16(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: False)
    chosen, why = precision.choose(TINY, auto(), cpu, run)
    assert chosen == "float32"
    assert "no bfloat16 instructions" in why


@pytest.mark.parametrize(("half", "expected"), [(200.0, "bfloat16"), (104.0, "float32"), (None, "float32")])
def test_auto_takes_bfloat16_only_when_it_is_measured_to_be_faster(run, cpu, monkeypatch, half, expected):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    speeds = {"float32": 100.0, "bfloat16": half}
    monkeypatch.setattr(precision, "_speeds", lambda *_: {name: speed for name, speed in speeds.items() if speed})
    assert precision.choose(TINY, auto(), cpu, run)[0] == expected


def test_a_measurement_that_failed_decides_nothing_for_later(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_speeds", lambda *_: {"float32": 100.0})
    assert precision.choose(TINY, auto(), cpu, run) == ("float32", "auto: bfloat16 could not be measured")
    monkeypatch.setattr(precision, "_speeds", lambda *_: {"float32": 100.0, "bfloat16": 200.0})
    assert precision.choose(TINY, auto(), cpu, run)[0] == "bfloat16"


def test_auto_decides_once_for_a_run_and_again_on_another_processor(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_speeds", lambda *_: {"float32": 100.0, "bfloat16": 200.0})
    assert precision.choose(TINY, auto(), cpu, run)[0] == "bfloat16"
    monkeypatch.setattr(precision, "_speeds", lambda *_: {"float32": 100.0, "bfloat16": 100.0})
    assert precision.choose(TINY, auto(), cpu, run) == ("bfloat16", "auto: as before on this processor")
    monkeypatch.setattr(runtime, "cpu_name", lambda: "another")
    assert precision.choose(TINY, auto(), cpu, run)[0] == "float32"


def test_auto_keeps_the_precision_of_a_finished_run_that_goes_on(run, cpu, monkeypatch):
    folder = run.stage("train")
    folder.mkdir(parents=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_speeds", lambda *_: {"float32": 100.0, "bfloat16": 200.0})
    details = {"cpu": runtime.cpu_name(), "threads": 2, "device": "cpu", "precision": "float32"}
    manifest.write(folder, "train", (), {}, details)
    assert precision.choose(TINY, auto(), cpu, run)[0] == "float32"


def test_the_measurement_trains_the_network_in_a_process_of_its_own():
    speeds = precision._speeds(TINY, 8)
    # Where MXNet cannot, bfloat16 is missing, and the choice falls on float32.
    assert list(speeds) == ["float32", "bfloat16"][: 2 if "avx512bw" in runtime.cpu_flags() else 1]
    assert all(speed > 0 for speed in speeds.values())


def test_the_measurement_can_be_started_before_it_is_known_what_for(monkeypatch):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    precision.start_early()
    (process,) = precision._early
    assert "float32" in precision._speeds(TINY, 8)
    assert process.returncode is not None
    assert not precision._early


def test_a_measurement_that_was_started_early_ends_when_it_is_not_needed(run, cpu, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    precision.start_early()
    (process,) = precision._early
    assert precision.choose(TINY, Training(epochs=1, precision="float32"), cpu, run) == ("float32", "as configured")
    assert process.returncode is not None
    assert not precision._early


def test_a_measurement_that_was_started_early_ends_with_whoever_started_it(monkeypatch):
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    precision.start_early()
    process = precision._early.pop()
    assert process.communicate("") == ("", None)
    assert process.returncode == 0


def test_a_measurement_ends_when_its_training_is_killed():
    lines = (
        "import json, os, sys; from pipeline.training import precision; process = precision._start(); "
        "json.dump({'architecture': {'name': 'wide', 'conv_arch': [[8, 512]], 'classes': 10}, 'batch_size': 128}, "
        "process.stdin); process.stdin.close(); print(process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    root = str(Path(precision.__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", lines], env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    measuring = int(killed.stdout)
    deadline = time.monotonic() + 2  # such a network takes much longer
    while not locks.is_gone(measuring) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert locks.is_gone(measuring)
