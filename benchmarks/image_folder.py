"""A folder of images as the data set: time to read it, and to find it unchanged.

Creates JPEG images of one size (train/ and test/, ten classes) in a temporary folder, or uses `--folder`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import bench
import numpy as np
from PIL import Image

from pipeline import config
from pipeline.process import parent
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=256, help="width and height of the generated images, in pixels")
    parser.add_argument("--checked", type=int, default=10_000, help="images in the second, smaller folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="use this folder instead of generated images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        folder = options.folder or make_images(root / "images", options.images, options.side)
        whole = measure(chain_of(folder, root / "whole"), root, options.rounds)
        few = measure(chain_of(make_images(root / "few", options.checked, 32), root / "few-made"), root, options.rounds)
    rows = [
        (f"{result['images']:,}", f"{result['seconds']:.1f}", f"{result['cpu']:.1f}",
         f"{result['images'] / result['seconds']:,.0f}",
         f"{1000 * bench.median(result['unchanged']):.0f}", bench.spread([1000 * s for s in result["unchanged"]]))
        for result in (whole, few)
    ]  # fmt: skip
    headings = ("images", "s to read", "of CPU", "images/s", "ms to find unchanged", "range")
    bench.table(f"{options.side} x {options.side} pixels; second row 32 x 32", headings, rows)
    bench.finish("image_folder", {"whole": whole, "few": few})


def make_images(folder: Path, images: int, side: int) -> Path:
    """Fill a folder with JPEG images of blurred noise, which compresses about as well as photographs."""
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_make, folder, side), range(images), chunksize=500))
    return folder


def _make(folder: Path, side: int, number: int) -> None:
    noise = np.random.RandomState(number).randint(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
    path = folder / ("test" if number % 6 == 0 else "train") / f"class {number % 10}" / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def chain_of(folder: Path, workspace: Path) -> Chain:
    value = {
        "data": {"name": "made", "source": str(folder)},
        "architecture": {"name": "any", "conv_arch": [[1, 16]]},
        "training": {"epochs": 1},
    }
    return Chain(Workspace(workspace), config.from_dict(value))


def measure(chain: Chain, root: Path, rounds: int) -> dict[str, Any]:
    """Measure the dataset stage in its own process once, and `complete` `rounds` times."""
    cpu, started = bench.cpu_seconds(), time.monotonic()
    manifest = parent.run_stage("dataset", chain, log=root / "dataset.log")
    seconds, cpu = time.monotonic() - started, bench.cpu_seconds() - cpu
    unchanged = []
    for _ in range(rounds):
        started = time.monotonic()
        assert chain.complete("dataset")
        unchanged.append(time.monotonic() - started)
    shutil.rmtree(chain.workspace.root)
    details = manifest["details"]
    images = details["train_images"] + details["test_images"]
    return {"images": images, "seconds": seconds, "cpu": cpu, "unchanged": unchanged}


if __name__ == "__main__":
    main()
