"""A folder of images as a data set: what is read, how it is split, what is left out, and the effect of a change."""

from __future__ import annotations

import json
import os
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import dataset, status
from pipeline.dataset import folder, image_files
from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from pipeline.workspace import freshness, image_folder

Chain = Callable[..., object]


def colour(number: int) -> np.ndarray:
    """Return the pixels of a 40 x 32 picture, unique to this number."""
    return np.random.RandomState(number).randint(0, 256, (40, 32, 3)).astype(np.uint8)


def picture(path: Path, number: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colour(number)).save(path, **options)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """train/ and test/ with the classes dent and good: 6 and 2 images of each."""
    for index, (part, count) in enumerate((("train", 6), ("test", 2))):
        for label in ("good", "dent"):
            for n in range(count):
                picture(
                    tmp_path / "parts" / part / label / f"{n}.png",
                    1000 * index + 100 * len(label) + n + (label == "dent") * 50,
                )
    return tmp_path / "parts"


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """One level of classes, 40 images each."""
    for label in ("good", "dent"):
        for n in range(40):
            picture(tmp_path / "loose" / label / f"{n}.png", n + (label == "dent") * 50)
    return tmp_path / "loose"


@pytest.fixture
def made(chain, reporter, parts: Path):
    """A chain whose data set is made from `parts`."""
    done = chain(parts, name="parts")
    dataset.prepare(done, reporter)
    return done


def prepared(chain, reporter, source: Path, **data: object) -> dataset.Dataset:
    made = chain(source, name="parts", **data)
    dataset.prepare(made, reporter)
    return dataset.load(made.dataset_folder())


def pixels(path: Path) -> bytes:
    found = image_files.read(path, (32, 32))
    assert isinstance(found, image_files.Picture)
    return found.pixels.tobytes()


def held(data: dataset.Dataset, part: str) -> set[tuple[bytes, str]]:
    images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
    return {(image.tobytes(), data.classes[label]) for image, label in zip(images, labels, strict=True)}


def on_disk(root: Path) -> set[tuple[bytes, str]]:
    return {(pixels(path), path.relative_to(root).parts[0]) for path in root.rglob("*.png")}


def test_train_and_test_hold_the_images_of_their_folders(chain, reporter, parts):
    data = prepared(chain, reporter, parts)
    assert data.classes == ["dent", "good"]
    for part in ("train", "test"):
        assert held(data, part) == on_disk(parts / part)
    assert data.manifest["details"]["label"] == "parts"
    assert data.manifest["details"]["layout"] == "images"
    assert "remarks" not in data.manifest["details"]
    assert reporter.fractions == sorted(reporter.fractions)


def test_any_size_and_mode_is_turned_upright_and_made_rgb_32_by_32(chain, reporter, parts):
    turned = Image.fromarray(colour(7)).convert("L").resize((90, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(parts / "train/good/turned.jpg", exif=exif)
    Image.fromarray(colour(8)).convert("P").save(parts / "train/good/palette.gif")
    Image.fromarray(colour(9)).convert("RGBA").save(parts / "train/good/alpha.webp", lossless=True)
    found = {image for image, _ in held(prepared(chain, reporter, parts), "train")}
    for name in ("turned.jpg", "palette.gif", "alpha.webp"):
        assert pixels(parts / "train/good" / name) in found


def test_the_split_is_stable_when_images_are_added_renamed_or_removed(chain, reporter, loose):
    first = prepared(chain, reporter, loose, test_fraction=0.3)
    assert held(first, "train") | held(first, "test") == on_disk(loose)
    assert 10 <= len(first.test_labels) <= 40
    for n in range(100, 140):
        picture(loose / "good" / f"{n}.png", n)
    for path in sorted((loose / "dent").glob("1*.png")):
        path.unlink()
    for path in sorted((loose / "dent").glob("*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    now, before = prepared(chain, reporter, loose, test_fraction=0.3), on_disk(loose)
    assert held(first, "test") & before == held(now, "test") & (held(first, "test") | held(first, "train"))
    more = prepared(chain, reporter, loose, test_fraction=0.5)
    assert held(now, "test") < held(more, "test")


def test_names_and_times_do_not_make_another_data_set(chain, reporter, loose):
    made = chain(loose, name="parts")
    first = dataset.prepare(made, reporter)["details"]["digest"]
    for path in sorted(loose.rglob("*.png")):
        path.rename(path.with_name(f"x{path.name}"))
    assert made.why("dataset") == [f"{loose} has changed: 80 renamed"]
    assert dataset.prepare(made, reporter)["details"]["digest"] == first
    assert made.why("dataset") == []
    assert made.source_record()["change"] is None


def test_a_labels_csv_gives_classes_and_parts(chain, reporter, tmp_path):
    rows = [
        ("0.png", "good", "train"),
        ("sub/1.png", "bad", "train"),
        ("2.png", "good", "test"),
        ("3.png", "bad", "test"),
    ]
    for number, (name, _, _) in enumerate(rows):
        picture(tmp_path / "listed" / name, number)
    lines = ["file,label,split", *(",".join(row) for row in rows)]
    (tmp_path / "listed/labels.csv").write_text("\n".join(lines))
    data = prepared(chain, reporter, tmp_path / "listed")
    assert held(data, "test") == {
        (pixels(tmp_path / "listed" / f"{n}.png"), label) for n, label in ((2, "good"), (3, "bad"))
    }


def test_a_labels_csv_cannot_name_files_outside_the_folder(chain, reporter, tmp_path, monkeypatch):
    rows = [(f"{n}.png", "good" if n % 2 else "bad", "test" if n < 4 else "train") for n in range(20)]
    for number, (name, _, _) in enumerate(rows):
        picture(tmp_path / "listed" / name, number)
    secret = picture(tmp_path / "secret.png", 99)
    (tmp_path / "listed/link.png").symlink_to(secret)
    read = image_files.read
    monkeypatch.setattr(folder.image_files, "read", lambda path, size: path.name == "link.png" or read(path, size))
    lines = [
        "file,label,split",
        *(",".join(row) for row in (*rows, ("link.png", "good", "train"), ("no.png", "bad", ""))),
    ]
    (tmp_path / "listed/labels.csv").write_text("\n".join(lines))
    data = prepared(chain, reporter, tmp_path / "listed")
    assert len(data.train_labels) + len(data.test_labels) == 20
    assert data.manifest["details"]["remarks"] == [
        "left out: 1 link leading out of the folder (link.png)",
        "left out: 2 images that cannot be used (link.png: is hidden, a link out of the folder, or no image by its "
        "extension; no.png: no such image, or a link out of the folder)",
    ]


def test_a_training_image_that_is_also_a_test_image_is_left_out_of_training(chain, reporter, parts):
    os.link(parts / "test/good/0.png", parts / "train/dent/copy.png")
    Image.open(parts / "test/good/1.png").save(parts / "train/good/again.bmp")
    data = prepared(chain, reporter, parts)
    assert held(data, "train") == on_disk(parts / "train") - {(pixels(parts / "test/good/0.png"), "dent")}
    assert len(data.train_labels) == 12
    remark = "left out of training: 2 images that are also test images (for example train/"
    assert [note for note in reporter.notes if note.startswith(remark)] == data.manifest["details"]["remarks"]


def test_an_image_in_two_classes_is_reported(chain, reporter, parts):
    os.link(parts / "train/good/0.png", parts / "train/dent/copy.png")
    prepared(chain, reporter, parts)
    assert "1 image in more than one class (for example train/dent/copy.png = train/good/0.png)" in reporter.notes


def test_a_few_unreadable_images_are_left_out_and_many_are_refused(chain, reporter, parts):
    (parts / "train/good/broken.png").write_bytes(b"\x89PNG\r\n")
    data = prepared(chain, reporter, parts)
    assert len(data.train_labels) == 12
    assert reporter.notes[0].startswith(
        "left out: 1 image that cannot be used (train/good/broken.png: not an image, or an unsupported format"
    )
    (parts / "test/good/cut.png").write_bytes((parts / "test/good/0.png").read_bytes()[:200])
    with pytest.raises(
        DataError, match=r"parts: 2 of 18 images cannot be used \(test/good/cut.png: .*; repair or remove"
    ):
        prepared(chain, reporter, parts)


def test_a_class_only_in_test_is_refused_and_one_only_in_training_reported(chain, reporter, parts):
    picture(parts / "train/rare/0.png", 1)
    prepared(chain, reporter, parts)
    assert "no test images of class rare: its recall cannot be measured" in reporter.notes
    picture(parts / "test/odd/0.png", 2)
    why = r"no training images of class odd \(odd: 1 image, all in the test part\); add some, or remove the class"
    with pytest.raises(DataError, match=why):
        prepared(chain, reporter, parts)
    (parts / "train/odd").mkdir()
    shutil.copy(parts / "test/odd/0.png", parts / "train/odd")
    with pytest.raises(DataError, match=r"\(odd: 1 image left out, as copies of test images\)"):
        prepared(chain, reporter, parts)


def test_classes_that_look_alike_are_refused(chain, reporter, parts):
    for form in ("NFC", "NFD"):
        picture(parts / "train" / unicodedata.normalize(form, "café") / "0.png", 1)
    with pytest.raises(DataError, match=r"differ only in how accents are encoded \(Unicode NFC or NFD\)"):
        prepared(chain, reporter, parts)


def test_more_classes_than_outputs_are_refused_before_reading_images(chain, reporter, parts, monkeypatch):
    monkeypatch.setattr(folder.image_files, "read", None)
    for label in "abc":
        picture(parts / "train" / label / "0.png", 1)
    with pytest.raises(DataError, match=r"has 5 classes, but architecture.classes is 4; set architecture.classes to 5"):
        prepared(chain, reporter, parts)


def test_a_checksum_for_a_folder_is_refused(chain, reporter, parts):
    with pytest.raises(
        DataError, match=r"is a folder, but data.sha256 is the checksum of an archive; remove data.sha256"
    ):
        prepared(chain, reporter, parts, sha256="0" * 64)


def test_a_folder_of_images_under_the_name_of_a_published_data_set_is_refused(chain, reporter, parts):
    with pytest.raises(
        DataError, match=r"no CIFAR-10 .* in this folder; .*a folder of images needs another data\.name"
    ):
        dataset.prepare(chain(parts, name="cifar10", classes=10), reporter)


def test_a_folder_in_a_store_is_refused_in_one_line(chain, reporter):
    with pytest.raises(DataError, match=r"s3://bucket/parts: is not .*; get it onto this machine"):
        prepared(chain, reporter, "s3://bucket/parts")


def test_a_change_is_reported_before_and_after_reading_it(made, chain, reporter, parts):
    first = made.source_record()["dataset"]
    for n in range(20, 23):
        picture(parts / "train/good" / f"{n}.png", n)
    (parts / "train/dent/0.png").unlink()
    (parts / "train/dent/1.png").rename(parts / "train/good/was-dent.png")
    what = "3 more images in class good, 1 gone, labels of 1 changed"
    assert made.why("dataset") == [f"{parts} has changed: {what}"]
    dataset.prepare(made, reporter)
    assert f"changed since {first}: {what}" in reporter.notes
    assert made.source_record()["change"] == {"since": first, "what": what}
    assert made.source_record()["dataset"] != first
    assert made.why("dataset") == []
    assert chain(parts, name="parts", test_fraction=0.5).why("dataset")[0].endswith("data.test_fraction: 0.2 -> 0.5")


@pytest.mark.parametrize("change", ["x", {}, {"since": 5, "what": ""}, {"since": "a\x1b[2J", "what": "\x07"}])
def test_a_damaged_change_record_is_ignored(made, reporter, change):
    pointer = made.workspace.source_pointer(made.given.data)
    write_json(pointer, {**read_json(pointer), "change": change})
    lines = status.lines(status.gather(made), "config.yaml")
    assert all(line.isprintable() for line in lines)
    dataset.prepare(made, reporter)
    assert made.why("dataset") == []


def test_without_a_listing_a_change_is_still_noticed(made, parts):
    made.workspace.source_listing(made.given.data).unlink()
    picture(parts / "train/good/new.png", 99)
    assert made.why("dataset") == [f"{parts} has changed"]


def test_a_folder_that_changes_while_it_is_read_is_noticed(chain, reporter, parts, monkeypatch):
    read = image_files.read

    def meanwhile(path: Path, size: tuple[int, int]):
        found = read(path, size)
        if path.name == "0.png" and path.parts[-3:-1] == ("train", "good"):
            os.utime(path, ns=(1, 1))
            picture(parts / "train/good/late.png", 99)
        return found

    made = chain(parts, name="parts")
    with monkeypatch.context() as patch:
        patch.setattr(folder.image_files, "read", meanwhile)
        dataset.prepare(made, reporter)
    assert (
        "left out: 1 image that cannot be used (train/good/0.png: changed while the folder was being read)"
        in reporter.notes
    )
    assert made.why("dataset")[0].endswith("has changed: 1 more image in class good, 1 rewritten")
    dataset.prepare(made, reporter)
    assert held(dataset.load(made.dataset_folder()), "train") == on_disk(parts / "train")


def test_a_command_looks_at_a_source_only_once(chain, reporter, parts, monkeypatch):
    monkeypatch.setattr(freshness, "_command_began", freshness._command_began)  # restored afterwards
    made = chain(parts, name="parts")
    for number, after in enumerate((lambda: dataset.prepare(made, reporter), lambda: None)):
        freshness.begin_command()
        after()
        assert made.why("dataset") == []
        picture(parts / "train/good" / f"late-{number}.png", 90 + number)
        assert made.why("dataset") == []
        freshness.begin_command()
        assert made.why("dataset")[0].endswith("has changed: 1 more image in class good")
        dataset.prepare(made, reporter)


@pytest.mark.parametrize("read", [4e9, 1e18, "tomorrow"])
def test_a_source_with_a_read_time_in_the_future_is_checked(made, parts, monkeypatch, read):
    monkeypatch.setattr(freshness, "_command_began", time.time())
    here = made.workspace.seen_source(made.given.data)
    write_json(here, {**{key: made.source_record()[key] for key in ("digest", "stat")}, "read": read})
    if read != "tomorrow":  # only a number is valid in the pointer
        pointer = made.workspace.source_pointer(made.given.data)
        write_json(pointer, {**json.loads(pointer.read_text()), "read": read})
    freshness.begin_command()
    picture(parts / "train/good" / "late.png", 90)
    assert made.why("dataset")[0].endswith("has changed: 1 more image in class good")


def test_an_unchanged_folder_is_listed_but_not_read(made, parts, monkeypatch):
    for path in parts.rglob("*.png"):
        path.chmod(0)
    monkeypatch.setattr(image_folder, "open", None, raising=False)
    assert made.why("dataset") == []
