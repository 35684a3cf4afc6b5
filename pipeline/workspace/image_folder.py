"""A folder of images: which files belong to the data set, the class and part of each, and what has changed.

train/<class>/…, test/<class>/…    the folders decide
<class>/…                          the content of each image decides which part it belongs to
labels.csv (file,label,split)      takes precedence; without a split, the content decides

Reads names, sizes, times and labels.csv, never an image.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import DataError
from pipeline.files import read_regular, write_atomically
from pipeline.text import counted, shown

LABELS = "labels.csv"
COLUMNS = ("file", "label", "split")
PARTS = ("train", "test")

#: Extensions of images: those of the formats that `pipeline.dataset.image_files` reads.
EXTENSIONS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf"),
    *(".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

#: Labels are stored as one byte each.
MAX_CLASSES = 256

LAYOUT = (
    "expected images in train/<class>/ and test/<class>/, in one folder per class, or a labels.csv "
    "(file,label,split) beside them"
)


class Unlabelled(DataError):
    """A folder whose images cannot be assigned to classes and parts. `advice` says what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.advice = advice


class Image(NamedTuple):
    """An image: size in bytes and time in ns (-1 if the file is missing), part ("" if undecided), class."""

    size: int
    time: int
    part: str
    label: str


#: The images of a folder by their paths in it.
Images = dict[str, Image]


@dataclass
class Scan:
    """Content of a folder, by paths in it."""

    root: str
    #: Size and time of each image and of labels.csv.
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    #: Ignored: links out of the folder, links to folders in it, files of other kinds.
    links: list[str] = field(default_factory=list)
    folder_links: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    #: Folders that could not be listed, and why.
    unlisted: dict[str, str] = field(default_factory=dict)


def scan(folder: Path) -> Scan:
    """List everything in a folder except hidden files, with one `stat` per image. Raises `OSError`."""
    result = Scan(os.path.realpath(folder))
    os.scandir(result.root).close()
    pending = [""]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(f"{result.root}/{place}") as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        _add(result, place + entry.name, entry, pending)
        except OSError as error:
            result.unlisted[place] = error.strerror or str(error)
    return result


def _add(result: Scan, name: str, entry: os.DirEntry[str], pending: list[str]) -> None:
    link = entry.is_symlink()
    if link and not os.path.realpath(entry.path).startswith(f"{result.root}/"):
        result.links.append(name)
    elif entry.is_dir() and link:  # to follow it would add the same images twice
        result.folder_links.append(name)
    elif entry.is_dir():
        result.folders.append(name)
        pending.append(f"{name}/")
    elif name == LABELS or posixpath.splitext(name)[1].lower() in EXTENSIONS:
        size, time = -1, -1
        with contextlib.suppress(OSError):  # just deleted, or a dangling link
            status = entry.stat()
            size, time = status.st_size, status.st_mtime_ns
        result.files[name] = (size, time)
    else:
        result.others.append(name)


def state(content: Scan, test_fraction: float) -> dict[str, Any] | None:
    """Summarise a scan: the folder is unchanged while this stays equal. Returns None if there are no images."""
    if not content.files and not content.unlisted:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name, about in sorted([*content.files.items(), *content.unlisted.items()]):
        digest.update(f"{name}\0{about}\n".encode(errors="surrogateescape"))
    return {"files": len(content.files), "digest": digest.hexdigest(), "test_fraction": test_fraction}


def labelled(content: Scan) -> tuple[Images, list[str]]:
    """Return the images with their classes and parts, and lines about what is left out. Raises `Unlabelled`."""
    for name, why in content.unlisted.items():
        raise Unlabelled(f"{shown(name)}: cannot be listed ({why})", "make it readable, or move it elsewhere")
    columns: list[str] = []
    if LABELS in content.links:
        raise Unlabelled(f"{LABELS} is a link out of the folder", "copy the file into the folder")
    if LABELS in content.files:
        (images, columns), where = _by_labels_csv(content), f"not in {LABELS}"
    else:
        images, where = _by_folders(content), "in no class folder"
    _check_classes({image.label for image in images.values()}, content)
    strays = [name for name in content.files if name not in images and name != LABELS]
    kinds = Counter(posixpath.splitext(name)[1].lower() or "without an extension" for name in content.others)
    left_out = [
        (len(strays), "image", where, examples(strays)),
        (len(columns), "column", f"of {LABELS} that is not read", examples(columns)),
        (len(content.links), "link", "leading out of the folder", examples(content.links)),
        (len(content.folder_links), "link", "to a folder", examples(content.folder_links)),
        (len(content.others), "other file", "of kinds that are not read", examples(kinds)),
    ]
    return images, [f"left out: {counted(n, noun)} {why} ({which})" for n, noun, why, which in left_out if n]


def examples(names: Iterable[str]) -> str:
    """Format the first few names: `a.png, b.png, c.png, …`."""
    first = sorted(names)
    return ", ".join(shown(name) for name in first[:3]) + (", …" if len(first) > 3 else "")


def _by_folders(content: Scan) -> Images:
    # A workspace among the classes, as by default if the command runs in the folder, has its locks by now.
    workspaces = {name for name in content.folders if posixpath.join(name, "work", "locks") in content.folders}
    top = {name for name in content.folders if "/" not in name} - workspaces
    for part in PARTS:
        for name in top - set(PARTS):
            if name.lower() == part:
                raise Unlabelled(f"has a folder {name}", f"rename it to {part}")
    parts = [part for part in PARTS if part in top]
    if len(parts) == 1:
        missing = PARTS[1 - PARTS.index(parts[0])]
        raise Unlabelled(
            f"has {parts[0]}/, but no {missing}/",
            "add it, or leave out both and let data.test_fraction split each class",
        )
    images: Images = {}
    empty: set[str] = set()
    for prefix in ("train/", "test/") if parts else ("",):
        places = {name: name.removeprefix(prefix).partition("/") for name in content.files if name.startswith(prefix)}
        labels = {name: label for name, (label, slash, _) in places.items() if slash}
        images |= {name: Image(*content.files[name], prefix[:-1], label) for name, label in labels.items()}
        classes = {name for name in content.folders if name.startswith(prefix) and "/" not in name.removeprefix(prefix)}
        empty |= classes - workspaces - {prefix + label for label in labels.values()}
    if images and empty:
        note = " (links out of the folder are left out)" if content.links else ""
        raise Unlabelled(f"no images in {examples(empty)}{note}", "add some, or remove the folder")
    return images


def _by_labels_csv(content: Scan) -> tuple[Images, list[str]]:
    """Return the images, and the names of columns that are not read."""
    images: Images = {}
    try:
        text = read_regular(Path(content.root, LABELS)).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = list(rows.fieldnames or [])
        alike = [name.strip().lower() for name in columns]  # `Split` must not be taken for no split
        ambiguous = any(alike.count(name) > min(1, columns.count(name)) for name in COLUMNS)
        if ambiguous or not {"file", "label"} <= set(columns):
            found = shown(",".join(columns)) or "nothing"
            raise Unlabelled(f"{LABELS}: its first line is {found}", "it must be file,label,split or file,label")
        for row in rows:
            where = f"{LABELS}, line {rows.line_num}"
            if any(value.strip() for value in row.get(None, [])):  # type: ignore[call-overload]
                raise Unlabelled(f"{where}: has more values than the first line", 'put "…" around values with a comma')
            _add_row(content, images, row, where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", str(error))
        raise Unlabelled(f"{LABELS}: cannot be read: {why}", "write it as UTF-8 text with commas") from None
    return images, [name for name in columns if name not in COLUMNS]


def _add_row(content: Scan, images: Images, row: Mapping[str, str | None], where: str) -> None:
    given, label, part = ((row.get(column) or "").strip() for column in ("file", "label", "split"))
    name = posixpath.normpath(given)
    if not given or not label:
        raise Unlabelled(f"{where}: has no {'label' if given else 'file'}", "fill it in, or remove the line")
    if name.startswith(("/", "../")):
        raise Unlabelled(f"{where}: {shown(given)} is not in this folder", "give paths that start at the folder")
    if part not in ("", *PARTS):
        raise Unlabelled(f"{where}: the split is {shown(part)}", "it must be train, test or empty")
    image = Image(*content.files.get(name, (-1, -1)), part, label)
    if images.setdefault(name, image) != image:
        raise Unlabelled(f"{where}: {shown(given)} has another label or split above", "remove one of the lines")


def _check_classes(classes: set[str], content: Scan) -> None:
    if not classes:
        rest = f"; {counted(len(content.others), 'other file')}" if content.others else ""
        rest += f"; {counted(len(content.links), 'link')} out of the folder, left out" if content.links else ""
        raise Unlabelled(f"no images in classes, and no CIFAR-10 or CIFAR-100 batches, in this folder{rest}", LAYOUT)
    if len(classes) == 1:
        links = f" ({counted(len(content.folder_links), 'link')} to folders left out)" if content.folder_links else ""
        raise Unlabelled(f"has only one class, {examples(classes)}{links}", f"add others: {LAYOUT}")
    if len(classes) > MAX_CLASSES:
        raise Unlabelled(f"has {len(classes):,} classes, but at most {MAX_CLASSES} are supported", LAYOUT)
    for name in classes:
        if not name.isprintable() or len(name) > 64:
            raise Unlabelled(f"class {name[:80]!a} is too long or not printable", "rename it")
    alike: dict[str, str] = {}
    for name in sorted(classes):
        if (other := alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)) != name:
            how = "case" if other.casefold() == name.casefold() else "how accents are encoded (Unicode NFC or NFD)"
            raise Unlabelled(f"classes {other} and {name} differ only in {how}", "give both one name")


def write(path: Path, images: Images) -> None:
    """Record the images of a folder for `difference`. Raises `OSError`."""
    text = io.StringIO()
    csv.writer(text).writerows([name, *image] for name, image in images.items())  # quotes names with \r or \n
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def read(path: Path) -> Images | None:
    """Read the images that `write` recorded. Returns None if there is no valid record."""
    with contextlib.suppress(OSError, ValueError, csv.Error):
        text = io.StringIO(read_regular(path).decode(errors="surrogateescape"), newline="")
        return {name: Image(int(size), int(time), part, label) for name, size, time, part, label in csv.reader(text)}
    return None


def difference(before: Images, after: Images) -> str:
    """Describe what changed: `214 more images in class scratch, 3 gone`. Recognises moved files by size and time."""
    gone = {name: image for name, image in before.items() if name not in after}
    more = {name: image for name, image in after.items() if name not in before}
    pairs = [(image, now) for name, image in before.items() if (now := after.get(name)) and now != image]
    renamed = 0
    places: dict[tuple[int, int], list[str]] = {}  # lists: images may have equal sizes and be unpacked at once
    for name, image in gone.items():
        places.setdefault((image.size, image.time), []).append(name)
    for name, image in list(more.items()):
        if same := places.get((image.size, image.time)):
            pairs.append((gone.pop(same.pop()), more.pop(name)))
            renamed += pairs[-1][0] == pairs[-1][1]
    relabelled = sum(old.label != new.label for old, new in pairs)
    moved = sum(old.part != new.part for old, new in pairs)
    touched = sum((old.size, old.time) != (new.size, new.time) for old, new in pairs)
    changes = [
        *_per_class(more.values()),
        f"{len(gone):,} gone" if gone else "",
        f"labels of {relabelled:,} changed" if relabelled else "",
        f"{moved:,} moved to another part" if moved else "",
        f"{touched:,} rewritten" if touched else "",
        f"{renamed:,} renamed" if renamed else "",
    ]
    return ", ".join(filter(None, changes))


def _per_class(more: Iterable[Image]) -> Sequence[str]:
    """Describe how many images were added to the three classes with the most, and to all others together."""
    counts = sorted(Counter(image.label for image in more).items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{counted(number, 'more image')} in class {shown(label)}" for label, number in counts[:3]]
    if rest := counts[3:]:
        number = sum(count for _, count in rest)
        lines.append(f"{number:,} in {'another class' if len(rest) == 1 else f'{len(rest)} other classes'}")
    return lines
