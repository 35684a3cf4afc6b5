"""The same network trained in PyTorch; bfloat16 uses autocast and channels_last, the fastest on a CPU.

Needs only torch. Reads a JSON description from standard input, prints `{"images_per_second": …}`. See throughput.py.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
from torch import nn


def main() -> None:
    about = json.load(sys.stdin)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    half = about["precision"] == "bfloat16"
    layout = torch.channels_last if half else torch.contiguous_format
    net = build(about["architecture"]).to(memory_format=layout)
    training = about["training"]
    optimizer = torch.optim.SGD(
        net.parameters(), 0.001, training["momentum"], weight_decay=training["weight_decay"],
        nesterov=training.get("optimizer") == "nag",
    )  # fmt: skip
    batch = about["batch"]
    x = torch.rand(batch, 3, 32, 32).to(memory_format=layout)
    y = torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    started, steps = time.monotonic(), 0
    while time.monotonic() - started < about["seconds"]:
        step()
        steps += 1
    print(json.dumps({"images_per_second": steps * batch / (time.monotonic() - started)}))


def build(architecture: dict) -> nn.Module:
    """Build the network that an `architecture` section describes."""
    layers: list[nn.Module] = []
    activation = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}[architecture["activation"]]
    norm = architecture["batch_norm"]
    channels, side = 3, 32
    if architecture["stem"]:
        stem = nn.Conv2d(channels, architecture["stem"], 2, bias=False).requires_grad_(False)
        layers += [stem, activation()]
        channels, side = architecture["stem"], 31
    for convolutions, width in architecture["conv_arch"]:
        for number in range(convolutions):
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not norm))
            if number == 0 and architecture["pool"] == "first":
                layers.append(nn.MaxPool2d(2))
            if norm:
                layers.append(nn.BatchNorm2d(width))
                if isinstance(norm, dict) and not norm["scale"]:
                    layers[-1].weight.requires_grad_(False)
            layers.append(activation())
            channels = width
        if architecture["pool"] == "last":
            layers.append(nn.MaxPool2d(2))
        side //= 2
    if architecture["global_pool"] == "max":
        layers.append(nn.AdaptiveMaxPool2d(1))
        side = 1
    layers.append(nn.Flatten())
    features = channels * side * side
    for width in architecture["dense"]:
        layers += [nn.Linear(features, width), activation(), nn.Dropout(architecture["dropout"])]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 10))


main()
