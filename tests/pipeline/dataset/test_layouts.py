"""CIFAR-100 in both layouts, and archives of a data set other than the configured one."""

from __future__ import annotations

import numpy as np
import pytest
from small_cifar import NAMES_100, mini_100_files, mini_files, python_100_files, python_files, tar_gz

from pipeline import dataset
from pipeline.dataset import layouts
from pipeline.errors import DataError

BOTH = {"binary": mini_100_files(), "python": python_100_files(mini_100_files())}


@pytest.fixture
def small_originals(monkeypatch):
    """Pretend that CIFAR-10 and CIFAR-100 are as small as the archives here."""
    for name, train, test in (("cifar10", 12, 8), ("cifar100", 200, 100)):
        small = layouts._PUBLISHED[name]._replace(batch_images=train, test_images=test)
        monkeypatch.setitem(layouts._PUBLISHED, name, small)


@pytest.mark.usefixtures("small_originals")
@pytest.mark.parametrize("name", ["cifar100", "mine"])
@pytest.mark.parametrize("layout", BOTH)
def test_cifar_100_is_read_with_its_fine_labels_and_their_names(chain, archive, reporter, layout, name):
    made = chain(archive(tar_gz(BOTH[layout])), name=name, classes=None)
    details = dataset.prepare(made, reporter)["details"]
    assert details["layout"] == layout
    data = dataset.load(made.dataset_folder())
    assert data.classes == list(NAMES_100)
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        rows = np.frombuffer(BOTH["binary"][f"{part}.bin"], np.uint8).reshape(-1, 3074)
        assert np.array_equal(labels, rows[:, 1])
        assert np.array_equal(images.reshape(-1, 3072), rows[:, 2:])
    assert made.config.architecture.outputs == 100


@pytest.mark.parametrize("files", BOTH.values(), ids=BOTH)
def test_an_unpacked_folder_of_cifar_100_is_recognised_by_its_files(chain, reporter, tmp_path, files):
    folder = tmp_path / "unpacked" / "cifar-100"
    folder.mkdir(parents=True)
    for name, content in {**files, "readme.html": b"x"}.items():
        (folder / name).write_bytes(content)
    (folder.parent / "more" / "train").mkdir(parents=True)  # a folder of that name is not a batch
    made = chain(folder.parent, classes=None)
    assert dataset.prepare(made, reporter)["details"]["train_images"] == 200
    assert {name.rpartition("/")[2] for name in made.source_record()["stat"]} == files.keys() - {
        "coarse_label_names.txt",
        "file.txt~",
    }
    assert made.why("dataset") == []


@pytest.mark.parametrize(
    ("files", "name", "line"),
    [
        (
            mini_files(),
            "cifar100",
            "is CIFAR-10 (data_batch_1.bin), but data.name is cifar100; set data.name to cifar10,",
        ),
        (python_files(mini_files()), "cifar100", "is CIFAR-10 (data_batch_1), but data.name is cifar100"),
        (
            BOTH["binary"],
            "cifar10",
            "is CIFAR-100 (train.bin), but data.name is cifar10; set data.name to cifar100, or",
        ),
        (BOTH["python"], "cifar10", "is CIFAR-100 (train), but data.name is cifar10"),
        (BOTH["binary"], "cifar100", "train.bin has 200 images, but that of CIFAR-100 has 50,000"),
        (BOTH["python"], "cifar100", "train has 200 images, but that of CIFAR-100 has 50,000"),
        ({"train.bin": BOTH["binary"]["train.bin"]}, "mine", "test.bin missing; found train.bin"),
        ({**mini_files(), **BOTH["binary"]}, "mine", "batches of more than one layout: data_batch_1.bin and train.bin"),
        ({**BOTH["python"], "meta": b""}, "mine", "meta has 0 bytes, expected 1 to 65,536"),
        ({**BOTH["binary"], "fine_label_names.txt": b"cat"}, "mine", "1 class names, expected 100 to 256"),
        ({"test.bin": BOTH["binary"]["test.bin"]}, "mine", "holds no CIFAR-10 or CIFAR-100 batches"),
        ({**BOTH["python"], "train": BOTH["python"]["meta"]}, "mine", "train: data is missing, expected an array"),
    ],
)
def test_a_wrong_archive_is_refused_and_identified(chain, archive, reporter, files, name, line):
    with pytest.raises(DataError) as caught:
        dataset.prepare(chain(archive(tar_gz(files)), name=name, classes=None), reporter)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("small_originals")
def test_cifar_100_must_name_all_100_classes_or_none(chain, archive, reporter):
    files = {name: content for name, content in BOTH["binary"].items() if name != "fine_label_names.txt"}
    details = dataset.prepare(chain(archive(tar_gz(files)), name="cifar100", classes=None), reporter)["details"]
    assert details["classes"] == [f"class {label}" for label in range(100)]
    files["fine_label_names.txt"] = b"".join(b"%d\n" % label for label in range(101))
    with pytest.raises(DataError, match="has 101 class names, expected 100"):
        dataset.prepare(chain(archive(tar_gz(files)), name="cifar100", classes=None), reporter)
