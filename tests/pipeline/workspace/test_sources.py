"""The state of a source: what counts as a change of it, and what does not."""

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


def test_an_archive_is_known_by_size_and_time(tmp_path):
    path = tmp_path / "mini.tar.gz"
    assert state(path) is None, "a source that is gone is no change"
    path.write_bytes(b"one")
    first = state(path)
    assert sources.same(state(path), [None, first])
    os.utime(path, ns=(1, 1))
    assert not sources.same(state(path), [first])
    assert sources.state(Data(name="mini", source="https://host/x")) is None


@pytest.mark.parametrize("name", ["cifar/data_batch_2.bin", "cifar/test_batch.bin", "cifar/batches.meta.txt"])
def test_a_folder_is_known_by_the_files_that_are_read(folder, name):
    first = state(folder)
    assert set(first) == {"cifar/data_batch_1.bin", "cifar/test_batch.bin", "cifar/batches.meta.txt"}
    (folder / name).write_bytes(b"other")
    assert not sources.same(state(folder), [first])


def test_whatever_else_is_in_a_folder_does_not_count(folder):
    first = state(folder)
    (folder / "cifar" / "readme.html").write_bytes(b"changed")
    (folder / "train.log").write_bytes(b"x")
    (folder / "artifacts" / "datasets").mkdir(parents=True)
    (folder / "another").mkdir()
    (folder / "another" / "data_batch_1.bin").write_bytes(b"downloaded beside it")
    assert sources.same(state(folder), [first])


def test_a_record_of_an_earlier_version_that_names_every_file_still_counts(folder):
    every = {path.relative_to(folder).as_posix(): sources._size_and_time(path) for path in folder.rglob("*.*")}
    assert "cifar/readme.html" in every
    assert sources.same(state(folder), [every])
    (folder / "cifar" / "test_batch.bin").write_bytes(b"other")
    assert not sources.same(state(folder), [every])


def test_a_folder_inside_that_may_not_be_listed_is_passed_over(folder, monkeypatch):
    (folder / "lost+found").mkdir()
    listed = os.listdir

    def refusing(path):
        if os.path.basename(path) == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", refusing)
    assert sources.batch_folders(folder) == [folder / "cifar"]
    assert "cifar/test_batch.bin" in state(folder)


def test_a_share_of_test_images_that_is_no_number_says_nothing_about_a_change(tmp_path):
    data = Data(name="mine", source=str(tmp_path), test_fraction=0.2)
    assert sources.change(data, tmp_path / "none.csv", [{"test_fraction": []}, {"test_fraction": {}}, 5]) == ""
    assert "test_fraction: 0.1 -> 0.2" in sources.change(data, tmp_path / "none.csv", [{"test_fraction": 0.1}])
