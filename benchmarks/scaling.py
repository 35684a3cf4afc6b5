"""How cost grows: of training with images, epochs and operations, of a finished chain with the runs beside it.

Doubles one quantity at a time and prints how much the cost grows: at most 2 means linear or better.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench

BASE: dict[str, Any] = {
    "data": bench.SAMPLE,
    "architecture": {"name": "scaling", "conv_arch": [[1, 16], [1, 32]], "batch_norm": True, "dense": []},
    "training": {"epochs": 2, "batch_size": 50, "validation_images": 500},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--doublings", type=int, choices=(1, 2), default=2, help="the sample has 5,000 images")
    options = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for what, measure in (
            ("training images", images),
            ("epochs", epochs),
            ("multiply-adds", width),
            ("runs", runs),
        ):
            results[what] = [measure(Path(name), number) for number in range(options.doublings + 1)]
            print(f"{what}: {results[what]}", flush=True)
    rows = []
    for what, points in results.items():
        for (size, cost), (next_size, next_cost) in itertools.pairwise(points):
            cells = (f"{size:,.0f} -> {next_size:,.0f}", f"{next_size / size:.2f} x")
            rows.append((what, *cells, f"{cost:.2f} -> {next_cost:.2f} s", f"{next_cost / cost:.2f} x"))
    bench.table("growth of cost", ("what", "from -> to", "growth", "cost", "growth of the cost"), rows)
    bench.finish("scaling", {"points": results})


def images(folder: Path, number: int) -> tuple[float, float]:
    """Seconds of training against the number of training images (the rest is held out)."""
    count = 1_000 * 2**number
    return count, _trained(folder, f"images-{count}", lambda v: v["training"].update(validation_images=5_000 - count))


def epochs(folder: Path, number: int) -> tuple[float, float]:
    count = 2 * 2**number
    return count, _trained(folder, f"epochs-{count}", lambda v: v["training"].update(epochs=count))


def width(folder: Path, number: int) -> tuple[float, float]:
    """Seconds of training against the multiply-adds of one image. Channels in sixteens, as oneDNN blocks them."""
    from pipeline import config, model

    channels = [[1, 16 * 2**number], [1, 32 * 2**number]]
    value = {**BASE, "architecture": {**BASE["architecture"], "conv_arch": channels}}
    work = sum(layer.multiply_adds for layer in model.layer_table(config.from_dict(value).architecture))
    return work, _trained(folder, f"width-{number}", lambda v: v["architecture"].update(conv_arch=channels))


def runs(folder: Path, number: int) -> tuple[float, float]:
    """Seconds of a finished chain against the number of runs in its workspace (copies of its own run)."""
    workspace = folder / "runs"
    path = _written(folder, "runs", lambda v: v["training"].update(epochs=1))
    arguments = ("Report", "--config", str(path), "--workspace", str(workspace))
    bench.luigi(*arguments)
    count = 100 * 2**number
    (run,) = [manifest.parent.parent for manifest in workspace.glob("runs/*/scaling-*/train/manifest.json")]
    for copy in range(count - 1):
        target = run.with_name(f"other-{copy:08x}")
        if not target.exists():
            shutil.copytree(run, target)
    return count, bench.median([bench.luigi(*arguments) for _ in range(5)])


def _trained(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> float:
    path = _written(folder, name, change)
    bench.luigi("TrainVGG", "--config", str(path), "--workspace", str(folder / name))
    return float(bench.read_manifest(folder / name, "train")["details"]["seconds"])


def _written(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    value = json.loads(json.dumps(BASE))
    change(value)
    return bench.write_config(folder / f"{name}.yaml", value)


if __name__ == "__main__":
    main()
