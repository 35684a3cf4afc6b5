"""Small file operations: each file read once, and file systems on which not everything works."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.files import each_read_once, move, read_json, read_regular, sha256_file, sync_directory, write_atomically


@pytest.fixture
def other_device(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if os.stat(folder).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("/dev/shm and the temporary folder are one file system")
        yield Path(folder)


def test_a_file_is_read_once_in_a_block_and_anew_after_it(tmp_path: Path) -> None:
    there, missing = tmp_path / "there.json", tmp_path / "missing.json"
    there.write_text("1")
    with each_read_once():
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


def test_only_a_real_failure_of_syncing_a_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    sync_directory(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(tmp_path)


def test_a_pipe_in_place_of_a_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    assert read_json(tmp_path / "manifest.json") is None
    with pytest.raises(OSError, match="not a regular file"):
        sha256_file(tmp_path / "manifest.json")


def test_json_with_text_that_no_file_or_terminal_can_hold_is_none(tmp_path: Path) -> None:
    half_a_pair, emoji = tmp_path / "half.json", tmp_path / "emoji.json"
    half_a_pair.write_text(r'{"name": "\ud800"}')
    emoji.write_text(r'{"name": "\ud83d\ude00"}')
    assert read_json(half_a_pair) is None
    assert read_json(emoji) == {"name": "😀"}


def test_new_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_atomically(tmp_path / "shared", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o664


def test_a_file_of_holes_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "pointer.json"
    path.touch()
    os.truncate(path, 1 << 40)
    assert read_json(path) is None
    with pytest.raises(OSError, match="1100 GB, far too large for what it should be"):
        read_regular(path)
