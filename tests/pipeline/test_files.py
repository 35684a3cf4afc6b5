"""File operations: the JSON cache, and file systems with limitations."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.files import json_cache, move, read_json, read_regular, sha256_file, sync_directory, write_atomically


@pytest.fixture
def other_device(tmp_path: Path) -> Iterator[Path]:
    """A folder on a different file system than `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if os.stat(folder).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("/dev/shm and the temporary folder are one file system")
        yield Path(folder)


def test_the_json_cache_reads_each_file_once_and_ends_with_its_block(tmp_path: Path) -> None:
    there, missing = tmp_path / "there.json", tmp_path / "missing.json"
    there.write_text("1")
    with json_cache():
        assert (read_json(there), read_json(missing)) == (1, None)
        there.write_text("2")
        missing.write_text("3")
        assert (read_json(there), read_json(missing)) == (1, None)
    assert (read_json(there), read_json(missing)) == (2, 3)


def test_a_folder_moves_to_another_file_system_whole(tmp_path: Path, other_device: Path) -> None:
    source, target = tmp_path / "train", other_device / "trash" / "train"
    (source / "inner").mkdir(parents=True)
    (source / "model.params").write_bytes(b"weights")
    (source / "inner" / "curve").write_bytes(b"curve")
    (source / "link").symlink_to("model.params")
    target.parent.mkdir()
    move(source, target)
    assert not source.exists()
    assert (target / "model.params").read_bytes() == b"weights"
    assert (target / "inner" / "curve").read_bytes() == b"curve"
    assert os.readlink(target / "link") == "model.params"
    assert [path.name for path in target.parent.iterdir()] == ["train"], "nothing is left beside it"


def test_a_file_moves_over_one_on_another_file_system(tmp_path: Path, other_device: Path) -> None:
    (tmp_path / "array").write_bytes(b"new")
    (other_device / "array").write_bytes(b"old")
    move(tmp_path / "array", other_device / "array")
    assert (other_device / "array").read_bytes() == b"new"
    assert not (tmp_path / "array").exists()


def test_a_move_that_fails_halfway_leaves_the_source_as_it_was(
    tmp_path: Path, other_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "train"
    source.mkdir()
    (source / "model.params").write_bytes(b"weights")

    def full(*about: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        move(source, other_device / "train")
    assert (source / "model.params").read_bytes() == b"weights"
    assert list(other_device.iterdir()) == []


def test_syncing_a_folder_fails_only_for_real_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    sync_directory(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(tmp_path)


def test_a_pipe_in_place_of_a_file_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    assert read_json(tmp_path / "manifest.json") is None
    with pytest.raises(OSError, match="not a regular file"):
        sha256_file(tmp_path / "manifest.json")


def test_json_with_a_lone_surrogate_is_rejected(tmp_path: Path) -> None:
    lone, emoji = tmp_path / "lone.json", tmp_path / "emoji.json"
    lone.write_text(r'{"name": "\ud800"}')
    emoji.write_text(r'{"name": "\ud83d\ude00"}')
    assert read_json(lone) is None
    assert read_json(emoji) == {"name": "😀"}


def test_new_files_respect_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_atomically(tmp_path / "shared", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o664


def test_a_huge_sparse_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "pointer.json"
    path.touch()
    os.truncate(path, 1 << 40)
    assert read_json(path) is None
    with pytest.raises(OSError, match="1100 GB, far too large for such a file"):
        read_regular(path)
