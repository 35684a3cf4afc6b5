"""The Gluon tutorial loop that this network was published with: DataLoader, ToTensor per sample, a sync per batch.

Reads a JSON description from standard input, prints `{"images_per_second": …}`. See throughput.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np

THREADS = os.environ.get("OMP_NUM_THREADS")


def main() -> None:
    about = json.load(sys.stdin)
    mx = _mxnet()
    from pipeline import model
    from pipeline.config import Architecture

    net = model.build(msgspec.convert(about["architecture"], Architecture))
    net.initialize(mx.init.Xavier())
    images = np.random.randint(0, 256, (10_000, 32, 32, 3)).astype(np.uint8)
    labels = np.random.randint(0, 10, 10_000).astype(np.int32)
    pairs = mx.gluon.data.ArrayDataset(mx.nd.array(images, dtype="uint8"), labels)
    pairs = pairs.transform_first(mx.gluon.data.vision.transforms.ToTensor())
    loader = mx.gluon.data.DataLoader(pairs, about["batch"], shuffle=True)
    trainer = mx.gluon.Trainer(
        net.collect_params(), "sgd", {"learning_rate": 0.01, "momentum": 0.9, "wd": about["training"]["weight_decay"]}
    )
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    started, seen, total = 0.0, 0, 0.0
    while True:
        for number, (x, y) in enumerate(loader):
            with mx.autograd.record():
                loss = loss_of(net(x), y)
            loss.backward()
            trainer.step(len(y))
            total += loss.mean().asscalar()
            if started:
                seen += len(y)
            elif number == 1:
                started = time.monotonic()
            if started and time.monotonic() - started > about["seconds"]:
                print(json.dumps({"images_per_second": seen / (time.monotonic() - started)}))
                return


def _mxnet():
    """Import MXNet as a user would; `runtime.mxnet` would set the number of threads."""
    np.bool = np.bool_  # type: ignore[attr-defined]
    import mxnet

    assert os.environ.get("OMP_NUM_THREADS") == THREADS
    return mxnet


main()
