"""Logits of a trained network over one or several views of each image, in float32 so that CPU and GPU agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from pipeline import model, runtime
from pipeline.config import from_record
from pipeline.dataset import loader
from pipeline.dataset.normalisation import Normalisation
from pipeline.evaluation import tta
from pipeline.model import weights
from pipeline.process.reporter import Reporter
from pipeline.workspace import Run

#: Small networks take 10 % longer in batches of 250; large ones take 3 % longer in these (two cores of an Intel Xeon).
BATCH_SIZE = 125


@dataclass(frozen=True)
class TrainedNetwork:
    """The hybridised network of a finished training on one device, with the normalisation of that training."""

    net: Any
    norm: Normalisation
    padding: str  # how training filled the border of shifted images: `zero` or `reflect`
    context: Any

    @classmethod
    def load(cls, run: Run, train: dict[str, Any], context: Any) -> TrainedNetwork:
        """Load the network that a training's manifest describes. Raises `WeightsError` if the digest does not match."""
        details = train["details"]
        config = from_record(details["config"])
        net = model.build(config.architecture)
        sha256 = train["files"]["model.params"]["sha256"]
        weights.load_verified(net, run.stage("train") / "model.params", sha256, [context])
        net.hybridize(static_alloc=True, static_shape=True)
        return cls(net, Normalisation.from_manifest(details), config.training.augmentation.padding, context)

    def logits(self, images: np.ndarray, count: int = 1, reporter: Reporter | None = None) -> list[np.ndarray]:
        """Return the (n, classes) float32 logits of (n, 3, 32, 32) uint8 images for each of the first `count` views."""
        parts: list[list[np.ndarray]] = [[] for _ in range(count)]
        # In pairs, so that one batch is read while the next one computes.
        for (view, output, size), _ in pairwise(chain(self._outputs(images, count, reporter), [(0, None, 0)])):
            parts[view].append(output.asnumpy()[:size])
        return [np.concatenate(part) for part in parts]

    def _outputs(self, images: np.ndarray, count: int, reporter: Reporter | None) -> Iterator[tuple[int, Any, int]]:
        """Yield the view, the output on the device and the number of images of each batch."""
        mx = runtime.mxnet()
        batch_size = min(BATCH_SIZE, len(images))
        for start in range(0, len(images), batch_size):
            for view, pixels in enumerate(tta.views(images[start : start + batch_size], count, self.padding)):
                ((values, size),) = loader.padded_batches(pixels, batch_size, self.norm)
                yield view, self.net(mx.nd.array(values, ctx=self.context)), size
            if reporter:
                done = min(start + batch_size, len(images))
                reporter.progress(done / len(images), f"{done:,} of {len(images):,} images")
