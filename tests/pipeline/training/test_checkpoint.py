"""Checkpoints: they load as saved, and anything else is reported as damaged."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import time
import tracemalloc
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline import files
from pipeline.errors import WorkspaceError
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Counters, Damaged, Snapshot


def snapshot(step: int = 1) -> Snapshot:
    generator = np.random.RandomState(step)
    parameters = {"0.0.weight": generator.rand(4, 3, 3, 3).astype(np.float32), "0.1.running_mean@1": np.zeros(4)}
    optimizer_state = {"0.0.weight": generator.rand(4, 3, 3, 3).astype(np.float32)}
    meta = {
        "step": step,
        "counters": msgspec.to_builtins(Counters(step=step)),
        "identity": {"training": {}},
        "versions": {},
    }
    return Snapshot(parameters, optimizer_state, meta)


def same(one: Snapshot, other: Snapshot) -> bool:
    return all(
        mine.keys() == its.keys() and all(np.array_equal(mine[name], its[name]) for name in mine)
        for mine, its in ((one.parameters, other.parameters), (one.optimizer_state, other.optimizer_state))
    ) and other.meta == {**one.meta, "schema": checkpoint.SCHEMA}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint."""
    checkpoint.save(tmp_path / "step-000000001.npz", snapshot())
    return tmp_path / "step-000000001.npz"


def test_a_checkpoint_loads_as_saved_from_plain_arrays_without_pickle(path: Path, tmp_path: Path) -> None:
    assert same(snapshot(), checkpoint.load(path))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with np.load(path, allow_pickle=False) as file:
        names = ["meta", "momentum:0.0.weight", "parameter:0.0.weight", "parameter:0.1.running_mean@1"]
        assert sorted(file.files) == names


def test_a_flipped_bit_neither_changes_what_is_loaded_nor_causes_a_large_allocation(path: Path) -> None:
    content, chance, refused = path.read_bytes(), random.Random(0), []
    heads = [content.index(b"PK\x03\x04"), content.index(b"\x93NUMPY"), content.index(b"PK\x01\x02")]
    places = [8 * start + bit for start in heads for bit in range(0, 8 * 128, 7)]
    places += range(8 * (len(content) - 22), 8 * len(content), 7)
    places += [chance.randrange(8 * len(content)) for _ in range(150)]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        tracemalloc.start()
        try:
            assert same(snapshot(), checkpoint.load(path)), place
        except Damaged as error:
            refused.append(str(error))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000, place
    assert not any("\n" in line for line in refused)
    assert len(refused) > len(places) / 2  # the other bits are in fields that ZIP does not need: dates, flags


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_damaged(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Damaged, match=r"step-000000001\.npz: damaged checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_that_cannot_be_opened_is_not_called_damaged(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match="cannot read it: Too many open files") as caught:
            checkpoint.load(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not isinstance(caught.value, Damaged)


def test_two_intact_checkpoints_are_kept_and_debris_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-000000007.npz.abc.tmp").write_bytes(b"half")
    writer = checkpoint.Writer(tmp_path)
    for step in (98, 99):
        checkpoint.quarantine(writer.write(snapshot(step), wait=True))
    for step in (1, 2, 10):
        writer.write(snapshot(step), wait=True)
    assert [path.name for path in checkpoint.paths(tmp_path)] == ["step-000000010.npz", "step-000000002.npz"]
    assert len(list(tmp_path.glob("damaged-*"))) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_is_synced_before_the_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _real=real, _name=name: (calls.append(_name), _real(*a))[1])
    monkeypatch.setattr(files, "sync_directory", lambda path: calls.append(f"directory {path.name}"))
    checkpoint.save(tmp_path / "step-000000001.npz", snapshot())
    assert calls == ["fsync", "replace", f"directory {tmp_path.name}"]


def test_a_failed_write_raises_at_the_next_check_and_keeps_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = checkpoint.Writer(tmp_path)
    writer.write(snapshot(1), wait=True)

    def full(*arguments: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "step"))

    monkeypatch.setattr(np, "savez", full)
    writer.write(snapshot(2))
    until = time.monotonic() + 60
    while writer.busy and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(WorkspaceError, match="the disk is full"):
        writer.check()
    writer.check()  # raises only once
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.npz"]


def test_non_finite_numbers_are_found_anywhere() -> None:
    good = snapshot()
    assert good.is_finite()
    good.optimizer_state["0.0.weight"][1, 2, 0, 1] = np.inf
    assert not good.is_finite()
    good = snapshot()
    good.parameters["0.0.weight"][3, 2, 2, 2] = np.nan
    assert not good.is_finite()


def test_an_array_that_declares_too_large_a_size_is_damaged_and_not_allocated(tmp_path: Path) -> None:
    path, header = tmp_path / "step-000000001.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**34,)})
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("parameter:0.0.weight.npy", header.getvalue() + bytes(100_000_000 * (kind > 0)))
        tracemalloc.start()
        with pytest.raises(Damaged, match=r"declared as|compressed"):
            checkpoint.load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000
