"""A minimal MXNet training loop: data in memory, one hybridized network, MXNet's own Trainer.

Reads a JSON description from standard input, prints `{"images_per_second": …}`. See throughput.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np

from pipeline import model, runtime
from pipeline.config import Architecture


def main() -> None:
    about = json.load(sys.stdin)
    mx = runtime.mxnet()
    if about["precision"] != "float32":
        from mxnet.contrib import amp

        amp.init(about["precision"])
    net = model.build(msgspec.convert(about["architecture"], Architecture))
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    training = about["training"]
    trainer = mx.gluon.Trainer(
        net.collect_params(),
        "nag" if training.get("optimizer") == "nag" else "sgd",
        {"learning_rate": 0.001, "momentum": training["momentum"], "wd": training["weight_decay"]},
    )
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    batch = about["batch"]
    x = mx.nd.array(np.random.rand(batch, 3, 32, 32))
    y = mx.nd.array(np.random.randint(0, 10, batch))

    def step() -> None:
        with mx.autograd.record():
            loss = loss_of(net(x), y)
        loss.backward()
        trainer.step(batch)
        loss.wait_to_read()

    for _ in range(3):
        step()
    mx.nd.waitall()
    started, steps = time.monotonic(), 0
    while time.monotonic() - started < about["seconds"]:
        step()
        steps += 1
    mx.nd.waitall()
    print(json.dumps({"images_per_second": steps * batch / (time.monotonic() - started)}))


main()
