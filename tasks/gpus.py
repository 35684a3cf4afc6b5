"""GPUs as scheduler resources, `gpu-<host>-<number>`: one unit each, unless `[resources]` configures more."""

from __future__ import annotations

import contextlib
import os
import socket
from importlib import metadata
from pathlib import Path


def resources(device: str) -> dict[str, int]:
    """Resources for a task that computes on `device` (as in the configuration): one unit of each of its GPUs."""
    kind, _, numbers = device.partition(":")
    if kind == "cpu" or (kind == "auto" and not _has_gpu()):
        return {}
    host = socket.gethostname().partition(".")[0].lower()
    return {f"gpu-{host}-{_machine_number(number)}": 1 for number in (numbers or "0").split(",")}


def uses_gpu(device: str) -> bool:
    """Whether a training on `device` runs on a GPU, leaving the cores free. `auto` does not with MXNet's CPU build."""
    if device != "auto":
        return device.startswith("gpu")
    with contextlib.suppress(metadata.PackageNotFoundError):
        metadata.distribution("mxnet")
        return False
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
    return _has_gpu() and not hidden


def _machine_number(number: str) -> str:
    """Translate CUDA's device number to the machine's, by `CUDA_VISIBLE_DEVICES`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    chosen = visible[int(number)] if int(number) < len(visible) else ""
    return chosen if chosen.isdecimal() else number


def _has_gpu() -> bool:
    """Whether `device: auto` may use a GPU.

    Does not ask MXNet: importing it takes a second, and tasks are created by the dozen. On a machine with a GPU but
    an MXNet without GPU code, trainings queue at luigid needlessly; `device: cpu` avoids that.
    """
    return any(Path("/dev").glob("nvidia[0-9]*"))
