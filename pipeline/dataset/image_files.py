"""Image files as pixels for a network: which files of a folder are images, and what is in them.

Reads the first picture of each file in a list of raster formats; every other file is returned with the reason. The
number of pixels limits the memory that a file can take; large pictures are decoded one at a time.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from pipeline.files import human_size
from pipeline.process.cores import usable_cores
from pipeline.text import counted, printable
from pipeline.workspace.image_folder import EXTENSIONS

#: Pillow's names of formats that hold pixels, never a program for another one to run (EPS: Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

#: Most pixels that are decoded. A JPEG may have twice as many: most of them are skipped while it is decoded.
MOST_PIXELS = 1 << 26

#: Most bytes of a file. Some decoders read all of it first.
MOST_BYTES = 1 << 30

#: Most scans of a JPEG. Progressive ones have ten; each can take a second, however few bytes it has.
MOST_SCANS = 100

#: What begins a part of a JPEG that says how long it is, or ends the picture.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")

#: Pictures of this many pixels or more are decoded one at a time.
LARGE = 1 << 22

_large = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """(3, H, W) uint8 RGB pixels, and the (width, height) that they had in the file."""

    pixels: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be used, and why."""

    file: Path
    why: str


def find(paths: Iterable[Path]) -> tuple[list[Path], list[Path], list[Unreadable]]:
    """The files in `paths`, with the image files below every folder among them; those skipped there; empty folders.

    Skipped are files without the extension of an image, and folders that are links; hidden ones are ignored.
    """
    found: list[Path] = []
    others: list[Path] = []
    empty: list[Unreadable] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        files, unlisted = _below(path)
        images = [file for file in files if file.suffix.lower() in EXTENSIONS]
        passed = [file for file in files if file.suffix.lower() not in EXTENSIONS]
        if not images and not unlisted:
            besides = f" ({skipped(passed)})" if passed else ""
            empty.append(Unreadable(path, f"no image files in this folder{besides}"))
            continue
        found += images + unlisted
        others += passed
    return found, others, empty


def skipped(files: Sequence[Path]) -> str:
    """What was skipped: `3 files skipped: 2 .heic, 1 .txt`, and folders that are links, by name."""
    links = {file for file in files if os.path.isdir(file)}
    kinds = Counter(file.suffix.lower() or "without an extension" for file in files if file not in links).most_common()
    named = ", ".join(f"{count:,} {printable(kind)}" for kind, count in kinds[:5])
    more = f", {sum(count for _, count in kinds[5:]):,} of other kinds" if kinds[5:] else ""
    told = [f"{counted(len(files) - len(links), 'file')} skipped: {named}{more}"] if kinds else []
    if links:
        which = [printable(str(link)) for link in sorted(links)[:3]] + ["…"] * (len(links) > 3)
        told.append(f"{counted(len(links), 'linked folder')} not followed (give each by name): {', '.join(which)}")
    return "; ".join(told)


def read_all(files: Sequence[Path], size: tuple[int, int]) -> list[Picture | Unreadable]:
    """Each file as a picture of `size` (height, width), in their order, on all cores."""
    with ThreadPoolExecutor(usable_cores()) as threads:  # decoding releases the interpreter lock
        return list(threads.map(lambda file: read(file, size), files))


def read(file: Path, size: tuple[int, int]) -> Picture | Unreadable:
    """The first picture in a file, upright, of this size (height, width).

    Other sizes are scaled until the shorter side fits, then cropped to the centre: the aspect ratio stays.
    """
    try:
        if not file.is_file():
            why = "a folder that cannot be listed" if file.is_dir() else "not a file"
            return Unreadable(file, why if file.exists() else "no such file or folder")
        if (length := file.stat().st_size) > MOST_BYTES:
            return Unreadable(file, f"has {human_size(length)}; the limit is {human_size(MOST_BYTES)}")
        opened = Image.open(file, formats=_formats())
        # What is in an AVIF file can be larger than it says.
        large = opened.format == "AVIF" or max(math.prod(opened.size), math.prod(_tile(opened))) >= LARGE
        # It is closed before the next large one is decoded.
        with _large if large else contextlib.nullcontext(), contextlib.closing(opened):
            return _decoded(opened, size)
    except PIL.UnidentifiedImageError:
        return Unreadable(file, f"not an image, or an unsupported format (supported: {', '.join(_formats())})")
    except Image.DecompressionBombError:
        return Unreadable(file, f"far more pixels than the limit, {MOST_PIXELS / 1e6:.0f} million: scale it down first")
    except _Refused as refused:
        return Unreadable(file, str(refused))
    except Exception as error:  # each decoder of Pillow has errors of its own for damaged files
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Unreadable(file, f"cannot be read: {printable(' '.join(said.split())) or type(error).__name__}")


class _Refused(Exception):
    """Pixels that cannot be decoded correctly, or not within the memory allowed."""


def _decoded(opened: Any, size: tuple[int, int]) -> Picture:
    height, width = size
    original = opened.size
    if opened.format in ("JPEG", "MPO") and _scans(opened.filename) > MOST_SCANS:
        raise _Refused(f"a JPEG of more than {MOST_SCANS} scans; save it anew")
    if opened.format == "PPM" and opened.tile[0][0] != "raw" and math.prod(original) > LARGE:
        raise _Refused("a large PPM whose values are not bytes, which is slow to read; save it as PNG")
    if math.prod(tile := _tile(opened)) > MOST_PIXELS:
        raise _Refused(f"a TIFF with tiles of {tile[0]:,} x {tile[1]:,} pixels; save it with smaller ones")
    _check_size(original, 2 * MOST_PIXELS if opened.format in ("JPEG", "MPO") else MOST_PIXELS)
    opened.draft("RGB", (4 * width, 4 * height))  # lets JPEG skip detail that scaling would throw away
    _check_size(opened.size, MOST_PIXELS)
    raw = _raw_mode(opened)
    if opened.format == "TIFF" and opened.tag_v2.get(262) == 6 and raw == "RGBX":
        raise _Refused(f"an uncompressed YCbCr TIFF, which Pillow 13 can read, but not {PIL.__version__}")
    scaling = Image.Resampling.BOX if max(opened.size) < 64 else Image.Resampling.LANCZOS
    opened.load()
    ImageOps.exif_transpose(opened, in_place=True)
    image = _eight_bits(opened, sixteen=";16" in raw and not raw.endswith("S"))
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), scaling)
    if image.mode == "RGBA":  # transparent pixels become white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Picture(np.array(image.convert("RGB")).transpose(2, 0, 1), original)


def _scans(file: str) -> int:
    """How many scans a JPEG file has, counted up to `MOST_SCANS` and one; what follows its end does not count."""
    place = scans = 0
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while scans <= MOST_SCANS and (marker := _MARKER.search(data, place)) and marker[0] != b"\xff\xd9":
            scans += marker[0] == b"\xff\xda"
            place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _tile(opened: Any) -> tuple[int, int]:
    """The size of the tiles of a TIFF, each of which is decoded whole, however little of it is in the picture."""
    width, height = (opened.tag_v2.get(tag, 0) if opened.format == "TIFF" else 0 for tag in (322, 323))
    if not isinstance(width, int) or not isinstance(height, int):
        raise _Refused("a TIFF whose tiles have no size")
    return width, height


def _check_size(size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        found = f"{size[0]:,} x {size[1]:,} pixels, {size[0] * size[1] / 1e6:,.0f} million"
        raise _Refused(f"{found}; the limit is {most / 1e6:.0f} million: scale it down first")


def _raw_mode(opened: Any) -> str:
    """The layout of the values in the file, in Pillow's words: `RGB;16B` has 16 bits, `I;16S` signed ones."""
    arguments = opened.tile[0][3] if opened.tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _eight_bits(image: Any, sixteen: bool) -> Any:
    """Any mode as L, RGB or RGBA, 8 bits each. Raises `_Refused` when the range of the values is unknown."""
    scaled = image.format == "PPM"  # states its range, by which Pillow scales
    if image.mode == "F":
        image = Image.fromarray(_from_floats(np.asarray(image)))
    elif image.mode.startswith("I"):
        if not (sixteen or scaled):
            raise _Refused("its integer pixels have no defined range; save it with 8 bits per channel")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if sixteen and not scaled and max(image.convert("L").getextrema()) < 64:
        raise _Refused(
            "its 16-bit pixels use less than a quarter of their range (10, 12 or 14 bits in 16?); "
            "scale them to the full range, or save it with 8 bits per channel"
        )
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _from_floats(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):
        raise _Refused(
            f"its floating-point pixels range from {low:g} to {high:g}, expected 0 to 1; "
            "scale them, or save it with 8 bits per channel"
        )
    return np.round(values * np.float32(255)).astype(np.uint8)


def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and linked folders below a folder that are not hidden, and the folders there that cannot be listed."""
    files: list[Path] = []
    unlisted: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        files += [Path(root, name) for name in [*names, *links] if not name.startswith(".")]
    return sorted(files), unlisted
