"""Decoding image files of every kind: modes, depths, sizes, and what is refused before it takes memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from luigi_runs import clean_environment
from PIL import Image, features

from pipeline.dataset import image_files
from pipeline.dataset.image_files import Picture, Unreadable

SIZE = (32, 32)


@pytest.fixture
def pixels() -> np.ndarray:
    """A colourful picture, (32, 32, 3) uint8, from black to white."""
    row, column = np.mgrid[0:32, 0:32]
    picture = np.stack([row * 8 + 7, column * 8 + 7, (row + column) * 4 + 7], axis=-1)
    picture[0, 0], picture[-1, -1] = 0, 255
    return picture.astype(np.uint8)


@pytest.fixture
def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def pixels_of(file: Path) -> np.ndarray:
    """(3, 32, 32) uint8."""
    found = image_files.read(file, SIZE)
    assert isinstance(found, Picture), found
    return found.pixels


def why_not(file: Path) -> str:
    found = image_files.read(file, SIZE)
    assert isinstance(found, Unreadable)
    return found.why


@pytest.mark.pythons
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_an_image_is_read(pixels: np.ndarray, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "image.tiff"
    Image.fromarray(pixels).convert(mode).save(file)
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        assert why_not(file) == f"an uncompressed YCbCr TIFF, which Pillow 13 can read, but not {PIL.__version__}"
    else:
        assert pixels_of(file).max() > 200


def test_the_bit_depth_does_not_change_the_pixels(grey: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.tiff")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tiff")
    (tmp_path / "12.pgm").write_bytes(b"P5 32 32 4095\n" + (grey.astype(int) * 4095 // 255).astype(">u2").tobytes())
    for name in ("deep.png", "deep.tiff", "float.tiff", "12.pgm"):
        assert np.abs(pixels_of(tmp_path / name)[0].astype(int) - grey).max() <= 1, name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (lambda grey: grey.astype(np.uint16) * 16, "16-bit pixels use less than a quarter of their range"),
        (lambda grey: grey.astype(np.uint16), "16-bit pixels use less than a quarter of their range"),
        (lambda grey: grey.astype(np.int32) * 5, "integer pixels have no defined range"),
        (lambda grey: grey.astype(np.float32), "floating-point pixels range from 0 to 255, expected 0 to 1"),
        (lambda grey: grey.astype(np.float32) / 255 - 0.5, "floating-point pixels range from -0.5 to 0.5"),
        (lambda grey: np.full(grey.shape, np.nan, np.float32), "floating-point pixels range from nan to nan"),
    ],
)
def test_values_of_unknown_range_are_refused(grey: np.ndarray, tmp_path: Path, values, words: str) -> None:  # type: ignore[no-untyped-def]
    Image.fromarray(values(grey)).save(tmp_path / "image.tiff")
    assert words in why_not(tmp_path / "image.tiff")


def test_a_colour_png_with_12_bits_in_16_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    for factor, words in ((257, ""), (16, "16-bit pixels use less than a quarter")):
        file = tmp_path / "deep.png"
        file.write_bytes(
            png(32, 32, 16, 2, (pixels.astype(np.uint16) * factor).astype(">u2").reshape(32, -1).view(np.uint8))
        )
        if words:
            assert words in why_not(file)
        else:
            assert np.array_equal(pixels_of(file), pixels.transpose(2, 0, 1))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pixels_of(tmp_path / "clear.png").min() == 255
    Image.new("L", SIZE, 7).save(tmp_path / "keyed.png", transparency=7)
    assert pixels_of(tmp_path / "keyed.png").min() == 255


def test_the_exif_orientation_is_applied(pixels: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels_of(tmp_path / "turned.png"), pixels.transpose(2, 0, 1))


def test_other_aspect_ratios_are_cropped_and_not_squashed(tmp_path: Path) -> None:
    half = Image.new("RGB", (64, 32), "white")
    half.paste("black", (0, 0, 16, 32))
    half.paste("black", (48, 0, 64, 32))
    half.save(tmp_path / "half.png")
    assert pixels_of(tmp_path / "half.png").min() == 255  # squashed, it would have black sides


def test_only_raster_formats_are_read_whatever_the_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    buffer = io.BytesIO()
    Image.new("RGB", SIZE).save(buffer, "EPS")
    file = tmp_path / "photo.jpg"
    file.write_bytes(buffer.getvalue())
    assert "an unsupported format (supported: " in why_not(file)
    assert not ran.exists()
    file.write_text("no picture at all")
    assert "not an image" in why_not(file)


def test_folders_and_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert why_not(tmp_path / "pipe.png") == "not a file"
    assert why_not(tmp_path / "gone.png") == "no such file or folder"


@pytest.mark.filterwarnings("ignore:Image size")
def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    for side, why in (
        (13_000, "13,000 x 13,000 pixels, 169 million; the limit is 67 million: scale it down first"),
        (14_000, "far more pixels than the limit, 67 million: scale it down first"),
    ):
        (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, None))
        assert why_not(tmp_path / "bomb.png") == why


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_an_avif_file_is_decoded_alone_whatever_size_it_declares(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, alone = image_files._decoded, []
    monkeypatch.setattr(
        image_files, "_decoded", lambda *given: alone.append(image_files._large.locked()) or decoded(*given)
    )
    for kind in ("avif", "png"):
        Image.fromarray(pixels).save(tmp_path / f"image.{kind}")
        pixels_of(tmp_path / f"image.{kind}")
    assert alone == [True, False]


def test_a_huge_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "holes.webp").write_bytes(b"RIFF\xf8\xff\xff\xffWEBPVP8 ")
    os.truncate(tmp_path / "holes.webp", 1 << 40)
    assert why_not(tmp_path / "holes.webp") == "is 1100 GB; the limit is 1.1 GB"


def test_a_tile_far_larger_than_its_picture_is_refused(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(16))
    tags = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_384, 323: 32_768, 324: 134, 325: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    (tmp_path / "bomb.tiff").write_bytes(head + entries + bytes(4) + packed)
    assert why_not(tmp_path / "bomb.tiff") == "a TIFF with tiles of 16,384 x 32,768 pixels; save it with smaller ones"


def test_a_jpeg_with_far_too_many_scans_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "scans.jpg"
    Image.fromarray(pixels).save(file, progressive=True)
    assert pixels_of(file).max() > 200
    content = file.read_bytes()
    file.write_bytes(content + 200 * b"\xff\xda")  # like the video that a phone appends
    assert pixels_of(file).max() > 200
    last = content[content.rindex(b"\xff\xda") : -2]
    file.write_bytes(content[:-2] + 100 * last + content[-2:])
    assert why_not(file) == "a JPEG of more than 100 scans; save it again"
    # A decoder skips exactly these two bytes, so nothing can be hidden behind them.
    file.write_bytes(content[:-2] + b"\xff\x02\xff\xff" + 100 * last + content[-2:])
    assert image_files._scans(str(file)) > 100


def test_a_large_ppm_that_pillow_reads_value_by_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.ppm").write_bytes(b"P5 32 32 100\n" + bytes([50]) * 1024)
    assert pixels_of(tmp_path / "small.ppm").max() > 120
    (tmp_path / "large.ppm").write_bytes(b"P5 4096 4096 100\n" + bytes(4096 * 4096))
    assert why_not(tmp_path / "large.ppm").startswith("a large PPM whose values are not bytes")


def test_large_pictures_take_little_memory_whatever_the_number_of_threads(tmp_path: Path) -> None:
    most = image_files.MAX_PIXELS
    (tmp_path / "first.png").write_bytes(png(8192, most // 8192, 16, 0, None))  # 134 MB of zeros, 130 kB here
    (tmp_path / "second.png").hardlink_to(tmp_path / "first.png")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from pipeline.dataset import image_files\n"
        "image_files.usable_cores = lambda: 4\n"
        "found = image_files.read_all([Path(name) for name in sys.argv[1:]], (32, 32))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    files = sorted(map(str, tmp_path.glob("*.png")))
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())
    assert int(done.stdout) < 1200  # MB


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:  # root may list every folder
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, _, _ = image_files.find([tmp_path])
    assert found == [tmp_path / "locked"]
    assert why_not(found[0]) == "a folder that cannot be listed"


def png(width: int, height: int, depth: int, colour: int, rows: np.ndarray | None) -> bytes:
    """Return a PNG file with these rows of bytes, or with zeros."""
    if rows is None:
        packer = zlib.compressobj(9)
        row = bytes(1 + width * (3 if colour == 2 else 1) * depth // 8)
        packed = b"".join(packer.compress(row) for _ in range(height if depth == 16 else 4)) + packer.flush()
    else:
        packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
