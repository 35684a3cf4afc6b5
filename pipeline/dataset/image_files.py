"""Find image files and decode them to pixels for a network.

Reads the first picture of a file in one of several raster formats; any other file is returned with the reason. A limit
on the pixels bounds the memory that a file can take; large pictures are decoded one at a time.
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

#: Pillow's names of the raster formats. EPS is left out: Ghostscript would run it as a program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

#: Largest picture that is decoded, in pixels. A JPEG may have twice as many, because decoding skips most of them.
MAX_PIXELS = 1 << 26

#: Largest file, in bytes. Some decoders read all of it first.
MAX_BYTES = 1 << 30

#: Largest number of scans of a JPEG. Progressive ones have ten; a scan of a few bytes can take a second.
MAX_SCANS = 100

#: Start of a JPEG segment with a length, or end of the picture.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")

#: Pictures of this many pixels or more are decoded one at a time.
LARGE = 1 << 22

_large = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """(3, H, W) uint8 RGB pixels, and the (width, height) of the picture in the file."""

    pixels: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be used, or a folder without images, and why."""

    file: Path
    why: str


def find(paths: Iterable[Path]) -> tuple[list[Path], list[Path], list[Unreadable]]:
    """Return the files to read, the files skipped in folders, and the folders without images.

    A file given by name is to be read whatever its extension, even if it is missing. In folders, skips files without an
    image's extension and linked folders, and ignores hidden files. Folders that cannot be listed are to be read, too.
    """
    found: list[Path] = []
    skipped: list[Path] = []
    empty: list[Unreadable] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        files, unlisted = _below(path)
        images = [file for file in files if file.suffix.lower() in EXTENSIONS]
        others = [file for file in files if file.suffix.lower() not in EXTENSIONS]
        if not images and not unlisted:
            besides = f" ({describe_skipped(others)})" if others else ""
            empty.append(Unreadable(path, f"no image files in this folder{besides}"))
            continue
        found += images + unlisted
        skipped += others
    return found, skipped, empty


def describe_skipped(files: Sequence[Path]) -> str:
    """Describe what was skipped: `3 files skipped: 2 .heic, 1 .txt`, then linked folders by name."""
    links = {file for file in files if os.path.isdir(file)}
    kinds = Counter(file.suffix.lower() or "without an extension" for file in files if file not in links).most_common()
    counts = ", ".join(f"{count:,} {printable(kind)}" for kind, count in kinds[:5])
    more = f", {sum(count for _, count in kinds[5:]):,} of other kinds" if kinds[5:] else ""
    parts = [f"{counted(len(files) - len(links), 'file')} skipped: {counts}{more}"] if kinds else []
    if links:
        names = [printable(str(link)) for link in sorted(links)[:3]] + ["…"] * (len(links) > 3)
        parts.append(f"{counted(len(links), 'linked folder')} not followed (give each by name): {', '.join(names)}")
    return "; ".join(parts)


def read_all(files: Sequence[Path], size: tuple[int, int]) -> list[Picture | Unreadable]:
    """Read each file as a picture of `size` (height, width), in order, on all cores."""
    with ThreadPoolExecutor(usable_cores()) as threads:  # decoding releases the GIL
        return list(threads.map(lambda file: read(file, size), files))


def read(file: Path, size: tuple[int, int]) -> Picture | Unreadable:
    """Read the first picture in a file, upright, scaled to fill `size` (height, width) and cropped to the centre."""
    try:
        if not file.is_file():
            why = "a folder that cannot be listed" if file.is_dir() else "not a file"
            return Unreadable(file, why if file.exists() else "no such file or folder")
        if (length := file.stat().st_size) > MAX_BYTES:
            return Unreadable(file, f"is {human_size(length)}; the limit is {human_size(MAX_BYTES)}")
        opened = Image.open(file, formats=_formats())
        # The picture in an AVIF file can be larger than its header says.
        large = opened.format == "AVIF" or max(math.prod(opened.size), math.prod(_tile(opened))) >= LARGE
        # The lock is released last, so a large picture is closed before the next one is decoded.
        with _large if large else contextlib.nullcontext(), contextlib.closing(opened):
            return _decoded(opened, size)
    except PIL.UnidentifiedImageError:
        return Unreadable(file, f"not an image, or an unsupported format (supported: {', '.join(_formats())})")
    except Image.DecompressionBombError:
        return Unreadable(file, f"far more pixels than the limit, {MAX_PIXELS / 1e6:.0f} million: scale it down first")
    except _Undecodable as refused:
        return Unreadable(file, str(refused))
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        message = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Unreadable(file, f"cannot be read: {printable(' '.join(message.split())) or type(error).__name__}")


class _Undecodable(Exception):
    """Pixels that cannot be decoded correctly, or not within the memory allowed."""


def _decoded(opened: Any, size: tuple[int, int]) -> Picture:
    height, width = size
    original = opened.size
    if opened.format in ("JPEG", "MPO") and _scans(opened.filename) > MAX_SCANS:
        raise _Undecodable(f"a JPEG of more than {MAX_SCANS} scans; save it again")
    if opened.format == "PPM" and opened.tile[0][0] != "raw" and math.prod(original) > LARGE:
        raise _Undecodable("a large PPM whose values are not bytes, which is slow to read; save it as PNG")
    if math.prod(tile := _tile(opened)) > MAX_PIXELS:
        raise _Undecodable(f"a TIFF with tiles of {tile[0]:,} x {tile[1]:,} pixels; save it with smaller ones")
    _check_size(original, 2 * MAX_PIXELS if opened.format in ("JPEG", "MPO") else MAX_PIXELS)
    opened.draft("RGB", (4 * width, 4 * height))  # lets JPEG skip detail that scaling would throw away
    _check_size(opened.size, MAX_PIXELS)
    raw = _raw_mode(opened)
    if opened.format == "TIFF" and opened.tag_v2.get(262) == 6 and raw == "RGBX":
        raise _Undecodable(f"an uncompressed YCbCr TIFF, which Pillow 13 can read, but not {PIL.__version__}")
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
    """Count the scans of a JPEG file up to the end of its picture, stopping after `MAX_SCANS + 1`."""
    position = scans = 0
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while scans <= MAX_SCANS and (marker := _MARKER.search(data, position)) and marker[0] != b"\xff\xd9":
            scans += marker[0] == b"\xff\xda"
            position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _tile(opened: Any) -> tuple[int, int]:
    """Return the size of a TIFF's tiles. A tile is decoded whole, however little of it is in the picture."""
    width, height = (opened.tag_v2.get(tag, 0) if opened.format == "TIFF" else 0 for tag in (322, 323))
    if not isinstance(width, int) or not isinstance(height, int):
        raise _Undecodable("a TIFF whose tiles have no size")
    return width, height


def _check_size(size: tuple[int, int], limit: int) -> None:
    if size[0] * size[1] > limit:
        pixels = f"{size[0]:,} x {size[1]:,} pixels, {size[0] * size[1] / 1e6:,.0f} million"
        raise _Undecodable(f"{pixels}; the limit is {limit / 1e6:.0f} million: scale it down first")


def _raw_mode(opened: Any) -> str:
    """Return Pillow's name for the layout of the values: `RGB;16B` has 16 bits, `I;16S` has signed ones."""
    arguments = opened.tile[0][3] if opened.tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _eight_bits(image: Any, sixteen: bool) -> Any:
    """Convert any mode to L, RGB or RGBA with 8 bits. Raises `_Undecodable` when the range of the values is unknown."""
    scaled = image.format == "PPM"  # Pillow scales by the range in the header
    if image.mode == "F":
        image = Image.fromarray(_from_floats(np.asarray(image)))
    elif image.mode.startswith("I"):
        if not (sixteen or scaled):
            raise _Undecodable("its integer pixels have no defined range; save it with 8 bits per channel")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if sixteen and not scaled and max(image.convert("L").getextrema()) < 64:
        raise _Undecodable(
            "its 16-bit pixels use less than a quarter of their range (10, 12 or 14 bits in 16?); "
            "scale them to the full range, or save it with 8 bits per channel"
        )
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _from_floats(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):
        raise _Undecodable(
            f"its floating-point pixels range from {low:g} to {high:g}, expected 0 to 1; "
            "scale them, or save it with 8 bits per channel"
        )
    return np.round(values * np.float32(255)).astype(np.uint8)


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # not every Pillow has all of them


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the visible files and linked folders below a folder, and the folders that cannot be listed."""
    files: list[Path] = []
    unlisted: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        files += [Path(root, name) for name in [*names, *links] if not name.startswith(".")]
    return sorted(files), unlisted
