"""Folders of images: classes and parts, what is refused or left out, and what has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image as Pillow

from pipeline.config import Data
from pipeline.dataset import image_files
from pipeline.workspace import Workspace, image_folder, sources
from pipeline.workspace.image_folder import Unlabelled


def touch(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def labelled(folder: Path) -> tuple[image_folder.Images, list[str]]:
    return image_folder.labelled(image_folder.scan(folder))


def places(folder: Path) -> dict[str, tuple[str, str]]:
    return {name: (image.part, image.label) for name, image in labelled(folder)[0].items()}


SPLIT = ("train/a/1.png", "train/b/deep/er/2.JPG", "test/a/3.png", "test/b/4.webp")


def test_the_extensions_cover_all_readable_formats():
    Pillow.init()
    known = {end for end, name in Pillow.registered_extensions().items() if name in image_files.FORMATS}
    assert known <= set(image_folder.EXTENSIONS)


def test_folders_decide_part_and_class(tmp_path):
    assert places(touch(tmp_path, *SPLIT)) == {
        "train/a/1.png": ("train", "a"),
        "train/b/deep/er/2.JPG": ("train", "b"),
        "test/a/3.png": ("test", "a"),
        "test/b/4.webp": ("test", "b"),
    }


def test_one_level_of_classes_leaves_the_part_open(tmp_path):
    assert places(touch(tmp_path, "a/1.png", "b/x/2.png")) == {"a/1.png": ("", "a"), "b/x/2.png": ("", "b")}


def test_labels_csv_takes_precedence(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png", "3.png")
    csv = (
        "\ufefffile,label,split,by\nimages/1.png,good,train,me\n./images/2.png, bad ,\n3.png,bad,test\ngone.png,good\n"
    )
    (tmp_path / "labels.csv").write_text(csv)
    assert places(tmp_path) == {
        "images/1.png": ("train", "good"),
        "images/2.png": ("", "bad"),
        "3.png": ("test", "bad"),
        "gone.png": ("", "good"),
    }


def test_what_is_left_out_is_reported(tmp_path):
    folder = touch(
        tmp_path / "data", *SPLIT, "stray.png", "extra/a/1.png", ".hidden.png", "train/Thumbs.db", "x/README"
    )
    touch(tmp_path, "outside.png", "others/1.png")
    (folder / "train/a/link.png").symlink_to(tmp_path / "outside.png")
    (folder / "train/a/inside.png").symlink_to("1.png")
    (folder / "train/folder").symlink_to(tmp_path / "others")
    (folder / "train/again").symlink_to("a")
    images, remarks = labelled(folder)
    assert set(images) == {*SPLIT, "train/a/inside.png"}
    assert remarks == [
        "left out: 2 images in no class folder (extra/a/1.png, stray.png)",
        "left out: 2 links leading out of the folder (train/a/link.png, train/folder)",
        "left out: 1 link to a folder (train/again)",
        "left out: 2 other files of kinds that are not read (.db, without an extension)",
    ]


LONG = "x" * 65
REFUSED = {
    "nothing": ((), "no images in classes, and no CIFAR-10 or CIFAR-100 batches, in this folder"),
    "other kinds": (("a/1.heic", "b/2.heic"), "no images in classes.*; 2 other files"),
    "no classes": (("1.png", "2.png"), "no images in classes"),
    "one class": (("a/1.png",), "has only one class, a"),
    "no test": (("train/a/1.png", "train/b/1.png"), "has train/, but no test/"),
    "no train": (("test/a/1.png", "test/b/1.png"), "has test/, but no train/"),
    "a part in capitals": (("Train/a/1.png", "test/a/1.png"), "has a folder Train"),
    "an empty class": ((*SPLIT, "train/c/note.txt"), "no images in train/c"),
    "a class in two cases": (("train/Cat/1.png", "test/cat/1.png", "train/b/1.png"), "Cat and cat differ only in case"),
    "a long name": (("a/1.png", f"{LONG}/1.png"), "too long or not printable"),
    "a name that is not UTF-8": (("a/1.png", os.fsdecode(b"\xff/1.png")), "too long or not printable"),
    "too many classes": (
        [f"{number}/1.png" for number in range(257)],
        "has 257 classes, but at most 256",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_error_says_why_a_folder_is_no_data_set(tmp_path, kind):
    names, why = REFUSED[kind]
    with pytest.raises(Unlabelled, match=why) as refused:
        labelled(touch(tmp_path, *names))
    assert refused.value.advice


def test_columns_that_are_not_read_are_reported(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("file,subset,label\n1.png,test,a,\n2.png,train,b,\n")
    assert labelled(tmp_path)[1] == ["left out: 1 column of labels.csv that is not read (subset)"]


def test_a_linked_labels_csv_is_refused(tmp_path):
    folder = touch(tmp_path / "data", "a/1.png", "b/1.png")
    (folder / "labels.csv").symlink_to(touch(tmp_path, "labels.csv") / "labels.csv")
    with pytest.raises(Unlabelled, match=r"labels\.csv is a link out of the folder"):
        labelled(folder)


def test_a_workspace_is_no_class(tmp_path):
    Workspace(tmp_path / "artifacts").locks.mkdir(parents=True)
    images, _ = labelled(touch(tmp_path, "a/1.png", "b/1.png", "artifacts/x.json"))
    assert {image.label for image in images.values()} == {"a", "b"}


def test_a_class_of_links_out_of_the_folder_is_empty(tmp_path):
    folder = touch(tmp_path / "data", "a/1.png", "c/1.png")
    (folder / "b").mkdir()
    (folder / "b/1.png").symlink_to(tmp_path / "1.png")
    with pytest.raises(Unlabelled, match=r"no images in b \(links out of the folder are left out\)"):
        labelled(folder)


BAD_LABELS = {
    "file,class\n": "its first line is file,class",
    "file,label,Split\n1.png,a,test\n": "its first line is file,label,Split",
    "file,label,split,split\n1.png,a,test,train\n": "its first line is file,label,split,split",
    "file,label\n1.png,a,test\n": "line 2: has more values than the first line",
    "": "its first line is nothing",
    "file,label\n1.png,\n": "line 2: has no label",
    "file,label\n,a\n": "line 2: has no file",
    "file,label\n../1.png,a\n": "line 2: ../1.png is not in this folder",
    "file,label\n/etc/1.png,a\n": "line 2: /etc/1.png is not in this folder",
    "file,label,split\n1.png,a,validation\n": "line 2: the split is validation",
    "file,label\n1.png,a\n2.png,b\n./1.png,b\n": "line 4: ./1.png has another label or split above",
    'file,label\n"1.png,a\n': "cannot be read: unexpected end of data",
    "file,label\n1.png,\xe9\n".encode("latin-1"): "cannot be read: it is not UTF-8",
}


@pytest.mark.parametrize("content", BAD_LABELS)
def test_an_invalid_labels_csv_is_refused_with_the_line(tmp_path, content):
    touch(tmp_path, "1.png", "2.png")
    touch(tmp_path, "labels.csv", content=content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Unlabelled, match=f"labels.csv.*{BAD_LABELS[content]}"):
        labelled(tmp_path)


def test_a_pipe_in_place_of_labels_csv_is_refused(tmp_path):
    touch(tmp_path, "1.png")
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(Unlabelled, match=r"labels\.csv: cannot be read: it is a link, a pipe or a folder"):
        labelled(tmp_path)
    assert image_folder.read(tmp_path / "labels.csv") is None


def test_an_unreadable_folder_is_named_and_is_a_change(tmp_path, monkeypatch):
    touch(tmp_path, *SPLIT)
    before = sources.state(Data(name="parts", source=str(tmp_path)))
    listed = os.scandir

    def refusing(path):
        if str(path).endswith("/test/b/"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(image_folder.os, "scandir", refusing)
    with pytest.raises(Unlabelled, match=r"test/b/: cannot be listed \(Permission denied\)"):
        labelled(tmp_path)
    assert sources.state(Data(name="parts", source=str(tmp_path))) != before


def test_the_state_of_a_folder_depends_only_on_its_images_and_labels(tmp_path):
    def state(fraction: float = 0.2):
        return sources.state(Data(name="parts", source=str(tmp_path), test_fraction=fraction))

    assert state() is None, "a folder that is empty, as when it is not mounted, is no change"
    touch(tmp_path, *SPLIT, "labels.csv")
    first = state()
    touch(tmp_path, "train/a/notes.txt", ".cache/1.png")
    assert sources.same(state(), [first])
    assert not sources.same(state(0.3), [first])
    for name in ("train/a/1.png", "labels.csv"):
        before = state()
        os.utime(tmp_path / name, ns=(5, 5))
        assert not sources.same(state(), [before])
    before = state()
    os.rename(tmp_path / "train/a/1.png", tmp_path / "train/b/1.png")
    assert not sources.same(state(), [before])


def test_changes_are_reported_per_class(tmp_path):
    folder = touch(
        tmp_path / "data",
        *(f"{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in range(9)),
        *(f'test/a/a name, "with{end}quotes".png' for end in ("\n", "\r", "\r\n")),
    )
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        os.utime(path, ns=(number, number))
    image_folder.write(tmp_path / "listing.csv", labelled(folder)[0])
    before = image_folder.read(tmp_path / "listing.csv")
    assert image_folder.difference(before, labelled(folder)[0]) == ""
    touch(folder, *(f"train/scratch/{n}.png" for n in range(1214)), *(f"train/{label}/new.png" for label in "abcde"))
    (folder / "test/a/0.png").unlink()
    for n in range(3):
        os.rename(folder / f"train/a/{n}.png", folder / f"train/b/was-a-{n}.png")
    os.rename(folder / "train/b/5.png", folder / "train/b/renamed.png")
    os.rename(folder / "train/b/6.png", folder / "test/b/moved.png")
    touch(folder, "train/b/7.png", content=b"other")
    assert image_folder.difference(before, labelled(folder)[0]) == (
        "1,214 more images in class scratch, 1 more image in class a, 1 more image in class b, 3 in 3 other classes, "
        "1 gone, labels of 3 changed, 1 moved to another part, 1 rewritten, 1 renamed"
    )


def test_moved_images_of_equal_size_and_time_are_distinguished():
    def listed(**labels):
        return {name: image_folder.Image(3072, 0, "", label) for name, label in labels.items()}

    before = listed(a="red", b="red", c="red")
    assert image_folder.difference(before, listed(d="blue", e="blue", c="red")) == "labels of 2 changed"
    assert image_folder.difference(before, listed(d="red", b="red")) == "1 gone, 1 renamed"
    more = {**before, **listed(d="blue")}
    assert image_folder.difference(before, more) == "1 more image in class blue"


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"1.png,x,2,train,a\n", b"\x00"])
def test_a_damaged_listing_is_ignored(tmp_path, content):
    (tmp_path / "listing.csv").write_bytes(content)
    assert not image_folder.read(tmp_path / "listing.csv")
