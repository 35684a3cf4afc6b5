"""Graphics cards as resources of the scheduler, `gpu-<host>-<number>`: one each, unless `[resources]` has more."""

from __future__ import annotations

import contextlib
import os
import socket
from importlib import metadata
from pathlib import Path


def resources(device: str) -> dict[str, int]:
    """What a task that computes on `device` (as in the configuration) takes: one of each of its cards."""
    kind, _, numbers = device.partition(":")
    if kind == "cpu" or (kind == "auto" and not _has_gpu()):
        return {}
    host = socket.gethostname().partition(".")[0].lower()
    return {f"gpu-{host}-{_card(number)}": 1 for number in (numbers or "0").split(",")}


def computes_on_a_card(device: str) -> bool:
    """Whether a training on `device` leaves the cores to others. `auto` needs another MXNet than the CPU build."""
    if device != "auto":
        return device.startswith("gpu")
    with contextlib.suppress(metadata.PackageNotFoundError):
        metadata.distribution("mxnet")
        return False
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
    return _has_gpu() and not hidden


def _card(number: str) -> str:
    """The machine's number of the card that CUDA calls `number`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    chosen = visible[int(number)] if int(number) < len(visible) else ""
    return chosen if chosen.isdecimal() else number


def _has_gpu() -> bool:
    """Whether `device: auto` may take a card.

    MXNet is not asked: importing it takes a second, and tasks are made by the dozen. On a machine with a card whose
    MXNet has no GPU code, trainings queue at luigid for nothing; `device: cpu` says that they need not.
    """
    return any(Path("/dev").glob("nvidia[0-9]*"))
