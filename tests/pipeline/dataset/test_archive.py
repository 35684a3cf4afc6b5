"""Hostile and broken archives: each is refused with its own line, and nothing in it reaches the disk."""

from __future__ import annotations

import gzip
import io
import os
import tarfile

import numpy as np
import pytest
from small_cifar import memory_below, mini_files, plain, python_files, records, special, tar, tar_gz

from pipeline import dataset
from pipeline.dataset import archive as reading
from pipeline.errors import DataError


def without(name):
    return {key: value for key, value in mini_files().items() if key != name}


def labelled(label):
    rows = np.frombuffer(records(12, 1), np.uint8).reshape(-1, 3073).copy()
    rows[5, 0] = label
    return rows.tobytes()


def pax(records, kind=tarfile.XHDTYPE):
    """Return a pax header with exactly this content."""
    info = tarfile.TarInfo("PaxHeaders/1")
    info.type, info.size = kind, len(records)
    return info, records


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def headers(content):
    """Return the offsets of the headers in a plain tar of plain files."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [member.offset for member in archive]


def v7(files):
    """Return a tar in the v7 format of 1979, without `ustar`."""
    content = bytearray(tar([plain(name, value) for name, value in files.items()]))
    for offset in headers(bytes(content)):
        content[offset + 257 : offset + 512] = bytes(255)
        content[offset + 148 : offset + 156] = b" " * 8
        content[offset + 148 : offset + 156] = b"%06o\0 " % sum(content[offset : offset + 512])
    return bytes(content)


WHOLE = tar_gz(mini_files())
PLAIN = tar([plain(name, value) for name, value in mini_files().items()])
MIDDLE = headers(PLAIN)[2]
BROKEN_CHECKSUM = WHOLE[:-8] + bytes([WHOLE[-8] ^ 1]) + WHOLE[-7:]

CASES = {
    "an empty file": (b"", "is empty"),
    "an HTML page": (b"  <!DOCTYPE html><title>404</title>", "is an HTML page"),
    "a zip file": (b"PK\x03\x04" + bytes(600), r"it begins with b'PK\\x03\\x04.*; expected a .tar.gz"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "it begins with b'version https://git-lfs"),
    "gzip of something else": (gzip.compress(b"hello" * 1000), "is not a readable tar archive"),
    "an archive without batches": (
        tar_gz({"images.bin": b"x"}),
        "no CIFAR-10 or CIFAR-100 batches .*; found images.bin",
    ),
    "a cut archive": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "an archive cut in its last bytes": (WHOLE[:-4], "truncated"),
    "a wrong gzip checksum": (BROKEN_CHECKSUM, "its gzip data is damaged"),
    "a gzip header without an end": (b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 600_000, "its gzip data is damaged"),
    "a cut plain tar": (gzip.decompress(WHOLE)[:100_000], "truncated: it ends inside test_batch"),
    "a plain tar cut between members": (PLAIN[:MIDDLE], "truncated: it ends inside its headers"),
    "a gzipped tar cut between members": (gzip.compress(PLAIN[:MIDDLE]), "truncated: it ends inside its headers"),
    "a flipped bit in a header": (flipped(PLAIN, MIDDLE + 3), rf"at byte {MIDDLE:,} of it: bad checksum"),
    "a flipped bit in the first header": (flipped(PLAIN, 3), "is not an archive, or its first header is damaged"),
    "a header that was wiped out": (
        PLAIN[:MIDDLE] + bytes(512) + PLAIN[MIDDLE + 512 :],
        "data follows its end-of-archive mark",
    ),
    "a pax header of digits": (tar_gz({}, pax(b"1" * 250_000)), "holds a damaged pax header"),
    "a pax header without an end": (tar_gz({}, pax(b"30 path=x\n")), "holds a damaged pax header"),
    "a pax size for all members": (
        tar_gz({}, pax(b"11 size=99\n", tarfile.XGLTYPE), *[plain("a", b"x" * 99)] * 2),
        "no CIFAR-10 or CIFAR-100 batches",
    ),
    "a pax name that climbs": (tar_gz({}, pax(b"16 path=../../x\n"), plain("a", b"")), r"\.\./\.\./x points outside"),
    "a missing test batch": (tar_gz(without("test_batch.bin")), "test_batch.bin missing; found data_batch_1.bin"),
    "a gap in the batches": (tar_gz(without("data_batch_1.bin")), "data_batch_1.bin missing"),
    "a wrong batch size": (tar_gz(mini_files() | {"data_batch_2.bin": records(3, 1)[:-1]}), "expected a multiple of"),
    "an empty batch": (tar_gz(mini_files() | {"test_batch.bin": b""}), "test_batch.bin has 0 bytes"),
    "a wrong label": (tar_gz(mini_files() | {"data_batch_1.bin": labelled(7)}), "image 5 has label 7, expected 0 to 3"),
    "a batch twice": (tar_gz(mini_files(), plain("b/test_batch.bin", records(1, 1))), "holds test_batch.bin twice"),
    "both layouts of CIFAR-10": (
        tar_gz(mini_files() | python_files(mini_files())),
        "more than one layout: data_batch_1 and data_batch_1.bin",
    ),
    "too few class names": (tar_gz(mini_files() | {"batches.meta.txt": b"cat\n"}), "has 1 class names"),
    "class names that are no text": (tar_gz(mini_files() | {"batches.meta.txt": b"\xff\xfe\n"}), "not UTF-8"),
    "a name that climbs": (tar_gz(mini_files(), plain("../../etc/cron.d/x", b"x")), r"\.\./\.\./etc.* points outside"),
    "an absolute name": (tar_gz(mini_files(), plain("/etc/passwd", b"x")), "member /etc/passwd points outside"),
    "a symbolic link": (tar_gz(mini_files(), special("a", tarfile.SYMTYPE, "/etc")), "member a is a link to /etc"),
    "a hard link": (tar_gz(mini_files(), special("a", tarfile.LNKTYPE, "../b")), r"member a is a link to \.\./b"),
    "a device": (tar_gz(mini_files(), special("sda", tarfile.BLKTYPE)), "member sda is a device or pipe"),
    "a pipe": (tar_gz(mini_files(), special("data_batch_3.bin", tarfile.FIFOTYPE)), "is a device or pipe"),
    "a sparse file": (tar_gz(mini_files(), special("a", tarfile.GNUTYPE_SPARSE)), "member a is of a special type"),
    "a name of two lines": (tar_gz(mini_files(), special("a\nb", tarfile.SYMTYPE, "c")), r"member a b is a link"),
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


@pytest.mark.parametrize("size", [0, 2_000_000, 2_000_000_000])
def test_a_bomb_is_stopped_at_the_limit_even_behind_the_end_of_the_tar(chain, archive, reporter, monkeypatch, size):
    monkeypatch.setattr(reading, "TOTAL_LIMIT", 1_000_000)
    info = tarfile.TarInfo("zeros")
    info.size = size
    bomb = gzip.compress(info.tobuf() + bytes(2_000_000))
    with pytest.raises(DataError, match=r"unpacks to more than 1.0 MB \(CIFAR-10"):
        dataset.prepare(chain(archive(bomb)), reporter)


def test_a_declared_size_takes_no_memory(chain, archive, reporter):
    info = tarfile.TarInfo("data_batch_1.bin")
    for size in (3073 * 300_000, 3073 * 1_000_000):
        info.size = size
        content = info.tobuf() + bytes(100_000)
        for written in (content, gzip.compress(content)):
            with memory_below(10_000_000), pytest.raises(DataError, match=r"truncated|unpacks to more than"):
                dataset.prepare(chain(archive(written)), reporter)


def test_long_names_of_skipped_members_take_no_memory(chain, archive, reporter):
    path = archive(tar([plain(f"{'x' * 200_000}{number}", b"") for number in range(100)]))
    with memory_below(10_000_000), pytest.raises(DataError, match=r"found x+\.\.\., x"):
        dataset.prepare(chain(path), reporter)


def test_an_impossible_compression_ratio_is_stopped_early(chain, archive, reporter, monkeypatch):
    monkeypatch.setattr(reading, "_RATIO_GRACE", 1_000_000)
    monkeypatch.setattr(reading, "RATIO_LIMIT", 20)
    bomb = gzip.compress(tar([plain("data_batch_1.bin", bytes(3073 * 5_000))]))
    with pytest.raises(DataError, match="unpacks to more than 20 times its size"):
        dataset.prepare(chain(archive(bomb)), reporter)


def test_a_file_far_larger_than_an_archive_is_refused_unread(chain, archive, reporter):
    path = archive(PLAIN)
    os.truncate(path, 20 << 30)
    with pytest.raises(DataError, match=r"is 21\.5 GB, far more than CIFAR-10"):
        dataset.prepare(chain(path), reporter)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_times_in_extra_headers_are_read(chain, archive, reporter, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers={"comment": "of all members"}) as writing:
        for name, content in mini_files().items():
            info, content = plain("é" * 200 + "/" + name, content)
            info.mtime = 1.5
            writing.addfile(info, io.BytesIO(content))
    assert dataset.prepare(chain(archive(buffer.getvalue())), reporter)["details"]["train_images"] == 24


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_v7_tar_is_read_plain_and_gzipped(chain, archive, reporter, pack):
    content = v7(mini_files())
    assert b"ustar" not in content[:1024]
    assert dataset.prepare(chain(archive(pack(content))), reporter)["details"]["train_images"] == 24


def test_garbage_in_the_last_record_is_ignored(chain, archive, reporter):
    last = headers(PLAIN)[-1]
    members_end = last + 512 + -(-len(mini_files()["test_batch.bin"]) // 512) * 512
    content = PLAIN[:members_end] + bytes(1024) + b"left over" * 500
    assert dataset.prepare(chain(archive(content)), reporter)["details"]["train_images"] == 24


def test_an_archive_of_several_gzip_parts_is_read_whole(chain, archive, reporter):
    content = gzip.decompress(WHOLE)
    parts = gzip.compress(content[:70_000]) + gzip.compress(content[70_000:]) + bytes(100)
    assert dataset.prepare(chain(archive(parts)), reporter)["details"]["train_images"] == 24


def test_cifar10_must_have_its_exact_sizes(chain, archive, reporter):
    with pytest.raises(DataError, match=r"data_batch_1.bin has 12 images, but that of CIFAR-10 has 10,000"):
        dataset.prepare(chain(archive(WHOLE), name="cifar10", classes=10), reporter)


def test_a_wrong_checksum_of_a_local_archive_names_both(chain, archive, reporter):
    with pytest.raises(DataError, match=r"SHA-256 is [0-9a-f]{64}, expected a{64}"):
        dataset.prepare(chain(archive(WHOLE), sha256="a" * 64), reporter)


def test_a_missing_source_or_a_pipe_is_refused(chain, reporter, tmp_path):
    with pytest.raises(DataError, match=r"nowhere.tar.gz: no such file or folder; get a good copy"):
        dataset.prepare(chain(tmp_path / "nowhere.tar.gz"), reporter)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        dataset.prepare(chain(tmp_path / "pipe"), reporter)


def test_a_folder_without_batches_is_refused(chain, reporter, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no images in classes, and no CIFAR-10 or CIFAR-100 batches"):
        dataset.prepare(chain(tmp_path / "folder"), reporter)
    with pytest.raises(DataError, match="no CIFAR-10 or CIFAR-100 batches"):
        dataset.prepare(chain(tmp_path / "folder", name="cifar100", classes=None), reporter)


def test_a_missing_batch_in_a_folder_is_named(chain, reporter, tmp_path):
    folder = tmp_path / "folder" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(records(4, 1))
    with pytest.raises(DataError, match=r"test_batch.bin missing"):
        dataset.prepare(chain(tmp_path / "folder"), reporter)


def test_a_batch_that_cannot_be_read_is_named(chain, reporter, tmp_path, monkeypatch):
    for name, content in mini_files().items():
        (tmp_path / name).write_bytes(content)

    def refusing(path, mode):  # root may read every file
        if path.name == "data_batch_2.bin":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(reading, "open", refusing, raising=False)
    with pytest.raises(DataError, match=rf"{tmp_path}: data_batch_2.bin cannot be read: Permission denied"):
        dataset.prepare(chain(tmp_path), reporter)


def test_a_folder_of_huge_sparse_files_is_refused(chain, reporter, tmp_path):
    for number in range(1, 4):
        with open(tmp_path / f"data_batch_{number}.bin", "wb") as file:
            file.truncate(3073 * 150_000)
    with memory_below(10_000_000), pytest.raises(DataError, match=r"its batches exceed 1.1 GB"):
        dataset.prepare(chain(tmp_path), reporter)


def test_class_names_default_to_cifar10s_own_or_to_numbers(chain, archive, reporter):
    files = without("batches.meta.txt")
    assert dataset.prepare(chain(archive(tar_gz(files))), reporter)["details"]["classes"][3] == "cat"
    files["test_batch.bin"] = records(12, 1, classes=12)
    details = dataset.prepare(chain(archive(tar_gz(files)), classes=12), reporter)["details"]
    assert details["classes"] == [f"class {label}" for label in range(12)]
