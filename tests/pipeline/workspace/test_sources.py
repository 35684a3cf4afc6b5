"""The state of a source: what is a change and what is not."""

from __future__ import annotations

import os

import pytest

from pipeline.config import Data
from pipeline.workspace import sources


@pytest.fixture
def folder(tmp_path):
    """A folder with an unpacked archive inside."""
    place = tmp_path / "source" / "cifar"
    place.mkdir(parents=True)
    for name in ("data_batch_1.bin", "test_batch.bin", "batches.meta.txt", "readme.html"):
        (place / name).write_bytes(b"x")
    return place.parent


def state(folder):
    return sources.state(Data(name="mini", source=str(folder)))


def test_an_archive_is_identified_by_size_and_time(tmp_path):
    path = tmp_path / "mini.tar.gz"
    assert state(path) is None, "a missing source is no change"
    path.write_bytes(b"one")
    first = state(path)
    assert sources.same(state(path), [None, first])
    os.utime(path, ns=(1, 1))
    assert not sources.same(state(path), [first])
    assert sources.state(Data(name="mini", source="https://host/x")) is None


@pytest.mark.parametrize("name", ["cifar/data_batch_2.bin", "cifar/test_batch.bin", "cifar/batches.meta.txt"])
def test_a_folder_is_identified_by_the_files_of_the_data_set(folder, name):
    first = state(folder)
    assert set(first) == {"cifar/data_batch_1.bin", "cifar/test_batch.bin", "cifar/batches.meta.txt"}
    (folder / name).write_bytes(b"other")
    assert not sources.same(state(folder), [first])


def test_other_files_in_a_folder_are_ignored(folder):
    first = state(folder)
    (folder / "cifar" / "readme.html").write_bytes(b"changed")
    (folder / "train.log").write_bytes(b"x")
    (folder / "artifacts" / "datasets").mkdir(parents=True)
    (folder / "another").mkdir()
    (folder / "another" / "data_batch_1.bin").write_bytes(b"downloaded beside it")
    assert sources.same(state(folder), [first])


def test_a_record_of_an_earlier_version_that_names_every_file_is_still_valid(folder):
    recorded = {path.relative_to(folder).as_posix(): sources._size_and_time(path) for path in folder.rglob("*.*")}
    assert "cifar/readme.html" in recorded
    assert sources.same(state(folder), [recorded])
    (folder / "cifar" / "test_batch.bin").write_bytes(b"other")
    assert not sources.same(state(folder), [recorded])


def test_an_unreadable_subfolder_is_skipped(folder, monkeypatch):
    (folder / "lost+found").mkdir()
    listed = os.listdir

    def refusing(path):
        if os.path.basename(path) == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", refusing)
    assert sources.batch_folders(folder) == [folder / "cifar"]
    assert "cifar/test_batch.bin" in state(folder)


def test_a_recorded_test_fraction_that_is_not_a_number_is_ignored(tmp_path):
    data = Data(name="mine", source=str(tmp_path), test_fraction=0.2)
    assert sources.change(data, tmp_path / "none.csv", [{"test_fraction": []}, {"test_fraction": {}}, 5]) == ""
    assert "test_fraction: 0.1 -> 0.2" in sources.change(data, tmp_path / "none.csv", [{"test_fraction": 0.1}])
