"""The data set stage as a whole: what it writes, what it reuses, and what it makes again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from small_cifar import NAMES, mini_files, plain, python_files, records, tar, tar_gz

from pipeline import dataset
from pipeline.errors import WorkspaceError
from pipeline.files import read_json, sha256_file, write_json
from pipeline.process import child
from pipeline.workspace import manifest


def split(files, *names):
    rows = np.concatenate([np.frombuffer(files[name], np.uint8).reshape(-1, 3073) for name in names])
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def test_an_archive_becomes_arrays_labels_and_class_names(chain, archive, reporter):
    files = mini_files()
    made = chain(archive(tar_gz(files)))
    dataset.prepare(made, reporter)
    data = dataset.load(made.dataset_folder())
    images, labels = split(files, "data_batch_1.bin", "data_batch_2.bin")
    assert np.array_equal(data.train_images, images)
    assert np.array_equal(data.train_labels, labels)
    assert np.array_equal(data.test_images, split(files, "test_batch.bin")[0])
    assert np.array_equal(data.test_labels, split(files, "test_batch.bin")[1])
    assert data.classes == list(NAMES)


def test_a_data_set_cannot_be_changed_by_accident(chain, archive, reporter):
    made = chain(archive(tar_gz(mini_files())))
    dataset.prepare(made, reporter)
    data = dataset.load(made.dataset_folder())
    assert isinstance(data.train_images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.classes = []


def test_the_manifest_and_the_pointer_describe_the_data_set(chain, archive, reporter):
    files = mini_files()
    path = archive(tar_gz(files))
    made = chain(path)
    details = dataset.prepare(made, reporter)["details"]
    train, test = split(files, "data_batch_1.bin", "data_batch_2.bin"), split(files, "test_batch.bin")
    content = b"".join(["\n".join(NAMES).encode(), *(part.tobytes() for part in (*train, *test))])
    assert details == {
        "name": "mini",
        "digest": hashlib.sha256(content).hexdigest(),
        "classes": list(NAMES),
        "train_images": 24,
        "test_images": 8,
        "train_per_class": [6, 6, 6, 6],
        "test_per_class": [2, 2, 2, 2],
        "sample": False,
        "official": False,
        "archive_sha256": sha256_file(path),
        "layout": "binary",
        "label": "mini, not the official archive",
    }
    assert any("not the official archive" in note for note in reporter.notes)
    pointer = read_json(made.workspace.source_pointer(made.config.data))
    assert (pointer["dataset"], pointer["digest"]) == (f"mini-{details['digest'][:8]}", details["digest"])
    assert pointer["official"] is False
    assert list(pointer["stat"]) == ["mini.tar.gz"]


def test_the_stage_is_complete_until_the_archive_changes(chain, archive, reporter):
    made = chain(archive(tar_gz(mini_files())))
    assert made.why("dataset")
    dataset.prepare(made, reporter)
    assert made.why("dataset") == []
    archive(tar_gz(mini_files(batches=3)))
    assert "has changed" in made.why("dataset")[0]
    dataset.prepare(made, reporter)
    assert made.why("dataset") == []


def test_a_file_address_is_known_even_from_a_record_of_an_earlier_version(chain, archive, reporter):
    path = archive(tar_gz(mini_files()))
    made = chain(path.as_uri())
    dataset.prepare(made, reporter)
    pointers, data = made.workspace, made.given.data
    former = pointers.source_pointer(data).rename(list(pointers.former_pointers(data))[1])
    write_json(former, {**read_json(former), "stat": None})
    assert "has changed" in made.why("dataset")[0], "the old record has no state, so the source is read once"
    content = path.read_bytes()
    path.unlink()
    assert made.why("dataset") == []
    path.write_bytes(content)
    dataset.prepare(made, reporter)
    assert made.why("dataset") == []
    archive(tar_gz(mini_files(batches=3)))
    assert "has changed" in made.why("dataset")[0]


def test_a_source_that_changes_during_reading_is_seen_as_changed(chain, archive, reporter, monkeypatch):
    path = archive(tar_gz(mini_files()))
    made = chain(path)
    read = dataset.source.archive.read

    def read_then_touch(*arguments):
        result = read(*arguments)
        os.utime(path, ns=(1, 1))
        return result

    monkeypatch.setattr(dataset.source.archive, "read", read_then_touch)
    dataset.prepare(made, reporter)
    assert "has changed" in made.why("dataset")[0]


def test_each_host_reads_its_own_copy_of_the_source_once(chain, archive, reporter, monkeypatch):
    path = archive(tar_gz(mini_files()))
    made = chain(path)
    for time in (1, 2, 3):
        os.utime(path, ns=(time, time))
        assert made.why("dataset")
        dataset.prepare(made, reporter)
    for time in (1, 2, 3):
        os.utime(path, ns=(time, time))
        assert made.why("dataset") == []
    archive(tar_gz(mini_files(batches=3)))
    dataset.prepare(made, reporter)
    os.utime(path, ns=(1, 1))
    assert "has changed" in made.why("dataset")[0], "copies of the previous images are forgotten"


@pytest.mark.parametrize("copies", [None, 5, ["x", {}]])
def test_a_pointer_of_another_version_or_edited_by_hand_is_read(chain, archive, reporter, copies):
    path = archive(tar_gz(mini_files()))
    made = chain(path)
    dataset.prepare(made, reporter)
    pointer = made.workspace.source_pointer(made.config.data)
    write_json(pointer, {**read_json(pointer), "copies": copies})
    assert made.why("dataset") == []
    os.utime(path, ns=(1, 1))
    dataset.prepare(made, reporter)
    assert made.why("dataset") == []


def test_every_layout_of_the_same_images_yields_the_same_data_set(chain, archive, reporter, tmp_path):
    files = mini_files()
    folder = tmp_path / "unpacked"
    for place, content in (("binary", files), ("python", python_files(files))):
        for name, value in content.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / place / name).write_bytes(value)
    (tmp_path / "flat.tar").write_bytes(tar([plain(name, value) for name, value in files.items()]))
    backwards = tar_gz(dict(reversed(list(files.items()))))
    sources = [
        archive(backwards),
        tmp_path / "flat.tar",
        (tmp_path / "flat.tar").as_uri(),
        folder / "binary",
        folder / "python",
    ]
    digests = {dataset.prepare(chain(source), reporter)["details"]["digest"] for source in sources}
    assert len(digests) == 1


def test_the_official_archive_is_recognised_by_its_checksum(chain, archive, reporter, monkeypatch):
    path = archive(tar_gz(mini_files()))
    made = chain(path)
    assert dataset.prepare(made, reporter)["details"]["official"] is False
    official = dataset.OFFICIAL["cifar10"]._replace(sha256=sha256_file(path))
    monkeypatch.setitem(dataset.OFFICIAL, "cifar10", official)
    assert dataset.prepare(made, reporter)["details"]["label"] == "CIFAR-10, the official archive"
    assert made.source_record()["official"] is True


def test_missing_classes_are_taken_from_the_data_set_once_it_is_made(chain, archive, reporter):
    path = archive(tar_gz(mini_files()))
    made, given = chain(path, classes=None), chain(path, classes=4)
    assert made.config.architecture.classes is None
    assert made.run() is None
    dataset.prepare(made, reporter)
    assert made.config.architecture.outputs == 4
    assert made.run() == given.run()
    assert child.chain_from(child.request(made, "train")).given == given.given
    more = {name: content for name, content in mini_files().items() if name != "batches.meta.txt"}
    archive(tar_gz({**more, "data_batch_1.bin": records(12, 1, classes=11)}))
    dataset.prepare(child.chain_from(child.request(made, "dataset")), reporter)
    assert made.config.architecture.outputs == 11


def test_runs_on_a_data_set_of_an_earlier_version_keep_their_ten_outputs(chain, archive, reporter):
    path = archive(tar_gz(mini_files()))
    made = chain(path, classes=None)
    dataset.prepare(made, reporter)
    pointer = made.workspace.source_pointer(made.given.data)
    former = {key: value for key, value in read_json(pointer).items() if key != "classes"}
    write_json(pointer, former)
    assert made.run() == chain(path, classes=10).run()
    os.utime(path, ns=(1, 1))
    assert made.why("dataset")
    dataset.prepare(made, reporter)
    assert made.run() == chain(path, classes=10).run(), "the same images, read again"
    archive(tar_gz(mini_files(batches=3)))
    dataset.prepare(made, reporter)
    assert made.run() == chain(path, classes=4).run(), "other images always make another run"


def test_an_intact_data_set_is_not_written_again(chain, archive, reporter):
    made = chain(archive(tar_gz(mini_files())))
    dataset.prepare(made, reporter)
    images = made.dataset_folder() / "train_images.npy"
    before = images.stat()
    dataset.prepare(made, reporter)
    assert (images.stat().st_mtime_ns, images.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "removed", "no manifest"])
def test_a_damaged_data_set_is_made_again(chain, archive, reporter, damage):
    made = chain(archive(tar_gz(mini_files())))
    first = dataset.prepare(made, reporter)
    images = made.dataset_folder() / "train_images.npy"
    if damage == "flipped bit":
        content = bytearray(images.read_bytes())
        content[-1] ^= 1
        images.write_bytes(content)
    elif damage == "truncated":
        os.truncate(images, 1000)
    elif damage == "removed":
        images.unlink()
    else:
        (made.dataset_folder() / manifest.MANIFEST).unlink()
    assert dataset.prepare(made, reporter)["files"] == first["files"]
    assert manifest.damage(made.dataset_folder(), first) == []


def test_loading_an_unfinished_or_truncated_data_set_says_what_to_do(chain, archive, reporter, tmp_path):
    with pytest.raises(WorkspaceError, match="run the dataset stage again"):
        dataset.load(tmp_path)
    made = chain(archive(tar_gz(mini_files())))
    dataset.prepare(made, reporter)
    os.truncate(made.dataset_folder() / "test_images.npy", 500)
    with pytest.raises(WorkspaceError, match="test_images"):
        dataset.load(made.dataset_folder())


@pytest.mark.parametrize("moment", ["replace", "write_json"])
def test_a_kill_while_writing_leaves_no_data_set_and_the_next_run_cleans_up(chain, archive, reporter, moment):
    made = chain(archive(tar_gz(mini_files())))
    script = f"""
        import os, signal, sys
        from small_cifar import Recorder
        from pipeline import config, dataset
        from pipeline.workspace.freshness import Chain
        from pipeline.workspace import Workspace
        from pathlib import Path

        def die(*arguments): os.kill(os.getpid(), signal.SIGKILL)
        if {moment!r} == "replace":
            count = [0]
            replace = os.replace
            def second_dies(*arguments):
                count[0] += 1
                die() if count[0] == 2 else replace(*arguments)
            os.replace = second_dies
        else:
            dataset.write_json = die
        chain = Chain(Workspace(Path(sys.argv[1])), config.from_dict({{
            "data": {{"name": "mini", "source": sys.argv[2]}},
            "architecture": {{"name": "tiny", "conv_arch": [[1, 4]], "classes": 4}},
            "training": {{"epochs": 1}}}}))
        dataset.prepare(chain, Recorder())
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(made.workspace.root), made.config.data.source]
    assert subprocess.run(arguments, env=environment, check=False).returncode == -signal.SIGKILL
    assert made.why("dataset")
    dataset.prepare(made, reporter)
    assert made.why("dataset") == []
    names = {path.name for path in (made.workspace.root / "datasets").rglob("*") if path.is_file()}
    pointer = made.workspace.source_pointer(made.config.data).name
    assert names == {*dataset.store.FILES, manifest.MANIFEST, pointer}


def test_a_read_only_workspace_is_one_clear_line(chain, archive, reporter):
    made = chain(archive(tar_gz(mini_files())))
    (made.workspace.root).write_text("a file where the workspace should be")
    with pytest.raises(WorkspaceError, match="cannot store the data set"):
        dataset.prepare(made, reporter)


def test_a_full_disk_is_one_clear_line_and_leaves_no_data_set(chain, archive, reporter, monkeypatch):
    made = chain(archive(tar_gz(mini_files())))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkspaceError, match=r"train_images.npy: cannot store the data set: the disk is full"):
        dataset.prepare(made, reporter)
    monkeypatch.undo()
    assert made.why("dataset")


def test_progress_rises_from_0_to_1(chain, archive, reporter):
    dataset.prepare(chain(archive(tar_gz(mini_files()))), reporter)
    assert reporter.fractions == sorted(reporter.fractions)
    assert reporter.fractions[-1] == 1.0
