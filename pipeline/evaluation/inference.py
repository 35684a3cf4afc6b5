"""Logits of a trained network, over one or several views of each image. In float32, so that CPU and GPU agree."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np

from pipeline import model, runtime
from pipeline.config import from_record
from pipeline.dataset import loader
from pipeline.dataset.normalisation import Normalisation
from pipeline.evaluation import tta
from pipeline.model import weights
from pipeline.process import child
from pipeline.workspace import Run

#: Small networks take 10 % longer in batches of 250, large ones 3 % longer in these (two cores of an Intel Xeon).
BATCH_SIZE = 125


def training_padding(train: dict[str, Any]) -> str:
    """What this training put beyond the border of shifted images: `zero` or `reflect`."""
    return str(train["details"]["config"]["training"].get("augmentation", {}).get("padding", "zero"))


def load_network(run: Run, train: dict[str, Any], contexts: list[Any]) -> Any:
    """The trained network, hybridised, its weights checked against the recorded digest."""
    net = model.build(from_record(train["details"]["config"]).architecture)
    sha256 = train["files"]["model.params"]["sha256"]
    weights.load_trusted(net, run.stage("train") / "model.params", sha256, contexts)
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def view_logits(
    net: Any,
    images: np.ndarray,
    norm: Normalisation,
    context: Any,
    count: int = 1,
    padding: str = "zero",
    reporter: child.Reporter | None = None,
) -> list[np.ndarray]:
    """For each of the first `count` views, the (n, classes) float32 logits of (n, 3, 32, 32) uint8 images."""
    mx = runtime.mxnet()
    batch_size = min(BATCH_SIZE, len(images))
    parts: list[list[np.ndarray]] = [[] for _ in range(count)]

    def outputs() -> Iterator[tuple[int, Any, int]]:
        for start in range(0, len(images), batch_size):
            for view, pixels in enumerate(tta.views(images[start : start + batch_size], count, padding)):
                ((values, size),) = loader.padded_batches(pixels, batch_size, norm)
                yield view, net(mx.nd.array(values, ctx=context)), size
            if reporter:
                done = min(start + batch_size, len(images))
                reporter.progress(done / len(images), f"{done:,} of {len(images):,} images")

    # In pairs, so that a batch is read while the next one computes.
    for (view, output, size), _ in pairwise(chain(outputs(), [(0, None, 0)])):
        parts[view].append(output.asnumpy()[:size])
    return [np.concatenate(part) for part in parts]
