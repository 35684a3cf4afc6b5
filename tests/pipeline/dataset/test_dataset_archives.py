"""Hostile and broken archives: each is refused with its own line, and nothing of it reaches the disk."""

from __future__ import annotations

import gzip
import os
import tarfile

import numpy as np
import pytest
from small_cifar import mini_files, plain, python_files, records, special, tar, tar_gz

from pipeline import dataset
from pipeline.dataset import archive as reading
from pipeline.errors import DataError


def without(name):
    return {key: value for key, value in mini_files().items() if key != name}


def labelled(label):
    rows = np.frombuffer(records(12, 1), np.uint8).reshape(-1, 3073).copy()
    rows[5, 0] = label
    return rows.tobytes()


def sparse(name):
    info, content = special(name, tarfile.GNUTYPE_SPARSE)
    return info, content


WHOLE = tar_gz(mini_files())
BROKEN_CHECKSUM = WHOLE[:-8] + bytes([WHOLE[-8] ^ 1]) + WHOLE[-7:]

CASES = {
    "an empty file": (b"", "is empty"),
    "an HTML page": (b"  <!DOCTYPE html><title>404</title>", "is an HTML page"),
    "a zip file": (b"PK\x03\x04" + bytes(600), "is a zip file; expected a .tar.gz"),
    "an xz file": (b"\xfd7zXZ\x00" + bytes(600), "is an xz file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "random bytes": (b"\x07" * 2000, "of an unknown kind"),
    "gzip of something else": (gzip.compress(b"hello" * 1000), "is not a readable tar archive"),
    "an archive without batches": (tar_gz({"train.bin": b"x"}), "no CIFAR-10 batches .*; found train.bin"),
    "a cut archive": (WHOLE[: len(WHOLE) // 2], "cut short"),
    "an archive cut in its last bytes": (WHOLE[:-4], "cut short"),
    "a wrong gzip checksum": (BROKEN_CHECKSUM, "its gzip data is damaged"),
    "a cut plain tar": (gzip.decompress(WHOLE)[:100_000], "cut short: it ends inside test_batch"),
    "a missing test batch": (tar_gz(without("test_batch.bin")), "test_batch.bin missing; found data_batch_1.bin"),
    "a gap in the batches": (tar_gz(without("data_batch_1.bin")), "data_batch_1.bin missing"),
    "a wrong batch size": (tar_gz(mini_files() | {"data_batch_2.bin": records(3, 1)[:-1]}), "expected a multiple of"),
    "an empty batch": (tar_gz(mini_files() | {"test_batch.bin": b""}), "test_batch.bin has 0 bytes"),
    "a wrong label": (tar_gz(mini_files() | {"data_batch_1.bin": labelled(7)}), "image 5 has label 7, expected 0 to 3"),
    "a batch twice": (tar_gz(mini_files(), plain("b/test_batch.bin", records(1, 1))), "holds test_batch.bin twice"),
    "both layouts": (tar_gz(mini_files() | python_files(mini_files())), "both the binary and the python layout"),
    "too few class names": (tar_gz(mini_files() | {"batches.meta.txt": b"cat\n"}), "has 1 class names"),
    "class names that are no text": (tar_gz(mini_files() | {"batches.meta.txt": b"\xff\xfe\n"}), "not UTF-8"),
    "a name that climbs": (tar_gz(mini_files(), plain("../../etc/cron.d/x", b"x")), r"\.\./\.\./etc.* points outside"),
    "an absolute name": (tar_gz(mini_files(), plain("/etc/passwd", b"x")), "member /etc/passwd points outside"),
    "a symbolic link": (tar_gz(mini_files(), special("a", tarfile.SYMTYPE, "/etc")), "member a is a link to /etc"),
    "a hard link": (tar_gz(mini_files(), special("a", tarfile.LNKTYPE, "../b")), r"member a is a link to \.\./b"),
    "a device": (tar_gz(mini_files(), special("sda", tarfile.BLKTYPE)), "member sda is a device or pipe"),
    "a pipe": (tar_gz(mini_files(), special("data_batch_3.bin", tarfile.FIFOTYPE)), "is a device or pipe"),
    "a sparse file": (tar_gz(mini_files(), sparse("hole")), "member hole is of a special type"),
    "a name of two lines": (tar_gz(mini_files(), special("a\nb", tarfile.SYMTYPE, "c")), r"member a\\nb is a link"),
    "a huge header": (tar_gz(mini_files(), plain("x" * 300_000, b"")), "header is larger"),
    "too many members": (tar_gz({f"{n}": b"" for n in range(1001)}), "more than 1000 members"),
}


@pytest.mark.parametrize("case", CASES)
def test_is_refused_with_its_own_line(case, chain, archive, reporter):
    content, message = CASES[case]
    made = chain(archive(content))
    with pytest.raises(DataError, match=message) as caught:
        dataset.prepare(made, reporter)
    line = str(caught.value)
    assert type(caught.value) is DataError
    assert line.startswith(made.config.data.source)
    assert "\n" not in line
    assert "CIFAR10_SOURCE" in line or "architecture.classes" in line
    assert made.source_record() is None
    assert not made.workspace.root.exists()


@pytest.mark.parametrize("size", [2_000_000, 2_000_000_000])
def test_a_bomb_is_stopped_at_the_limit(chain, archive, reporter, monkeypatch, size):
    monkeypatch.setattr(reading, "TOTAL_LIMIT", 1_000_000)
    info = tarfile.TarInfo("zeros")
    info.size = size
    bomb = gzip.compress(info.tobuf() + bytes(2_000_000))
    with pytest.raises(DataError, match="unpacks to more than"):
        dataset.prepare(chain(archive(bomb)), reporter)


def test_a_bomb_behind_the_end_of_the_tar_is_stopped_too(chain, archive, reporter, monkeypatch):
    monkeypatch.setattr(reading, "TOTAL_LIMIT", 1_000_000)
    bomb = gzip.compress(tar([plain("a", b"")]) + bytes(2_000_000))
    with pytest.raises(DataError, match="unpacks to more than"):
        dataset.prepare(chain(archive(bomb)), reporter)


def test_an_archive_of_several_gzip_parts_is_read_whole(chain, archive, reporter):
    content = gzip.decompress(WHOLE)
    parts = gzip.compress(content[:70_000]) + gzip.compress(content[70_000:]) + bytes(100)
    assert dataset.prepare(chain(archive(parts)), reporter)["details"]["train_images"] == 24


def test_zlib_and_isal_read_the_same(chain, archive, reporter, monkeypatch):
    import zlib

    first = dataset.prepare(chain(archive(WHOLE)), reporter)
    monkeypatch.setattr(reading, "inflate", zlib)
    assert dataset.prepare(chain(archive(WHOLE)), reporter)["files"] == first["files"]


def test_cifar10_itself_must_have_its_exact_sizes(chain, archive, reporter):
    with pytest.raises(DataError, match=r"data_batch_1.bin has 36,876 bytes, expected 30,730,000 \(10,000 images"):
        dataset.prepare(chain(archive(WHOLE), name="cifar10", classes=10), reporter)


def test_a_wrong_checksum_of_a_local_archive_names_both(chain, archive, reporter):
    with pytest.raises(DataError, match=r"SHA-256 is [0-9a-f]{64}, expected a{64}"):
        dataset.prepare(chain(archive(WHOLE), sha256="a" * 64), reporter)


def test_a_source_that_is_not_there_says_so(chain, reporter, tmp_path):
    with pytest.raises(DataError, match=r"nowhere.tar.gz: no such file or folder; get a good copy"):
        dataset.prepare(chain(tmp_path / "nowhere.tar.gz"), reporter)


def test_a_source_that_is_a_pipe_does_not_hang(chain, reporter, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        dataset.prepare(chain(tmp_path / "pipe"), reporter)


def test_a_folder_without_batches_says_so(chain, reporter, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no CIFAR-10 batches"):
        dataset.prepare(chain(tmp_path / "folder"), reporter)


def test_a_folder_that_lacks_a_batch_says_which(chain, reporter, tmp_path):
    folder = tmp_path / "folder" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(records(4, 1))
    with pytest.raises(DataError, match=r"test_batch.bin missing"):
        dataset.prepare(chain(tmp_path / "folder"), reporter)


def test_class_names_default_to_cifar10s_own_or_to_numbers(chain, archive, reporter):
    files = without("batches.meta.txt")
    assert dataset.prepare(chain(archive(tar_gz(files))), reporter)["details"]["classes"][3] == "cat"
    files["test_batch.bin"] = records(12, 1, classes=12)
    details = dataset.prepare(chain(archive(tar_gz(files)), classes=12), reporter)["details"]
    assert details["classes"] == [f"class {label}" for label in range(12)]
