"""The same network trained by PyTorch; bfloat16 with autocast and channels_last, the fastest way on a CPU.

Needs torch alone. Reads a JSON description on standard input, prints `{"images_per_second": …}`. See throughput.py.
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
    """The network that `conv_arch`, `dense` and so on describe."""
    layers: list[nn.Module] = []
    channels, side = 3, 32
    for convolutions, width in architecture["conv_arch"]:
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if architecture["batch_norm"]:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(2))
        side //= 2
    layers.append(nn.Flatten())
    features = channels * side * side
    for width in architecture["dense"]:
        layers += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(architecture["dropout"])]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 10))


main()
