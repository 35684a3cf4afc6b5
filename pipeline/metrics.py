"""Prometheus metrics of a workspace, written to a file for node_exporter's textfile collector."""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import re
import time
from pathlib import Path

from pipeline import status
from pipeline.config import Config
from pipeline.errors import WorkspaceError
from pipeline.files import read_regular, write_atomically
from pipeline.retraining import registry
from pipeline.retraining.generations import PROMOTED, REFUSED
from pipeline.storage import locks
from pipeline.workspace import Workspace, events

SUCCESS = "vgg_retrain_last_success_timestamp_seconds"

#: How long to wait for another command that writes them.
LOCK_SECONDS = 30

#: Metric name -> type and help text.
METRICS = {
    "vgg_model_info": ("gauge", "Always 1; the labels name the current generation and its run."),
    "vgg_model_accuracy": ("gauge", "Share of the test images that the current model classifies correctly."),
    "vgg_model_current_since_timestamp_seconds": ("gauge", "When the current model became current."),
    "vgg_generations_total": ("counter", "Decisions of the promotion gate, by outcome."),
    SUCCESS: ("gauge", "When Retrain last ended with exit code 0 on this host."),
    "vgg_workspace_bytes": ("gauge", "Total size of all files of a kind."),
}


def write(path: Path, workspace: Workspace, retrained: Config | None = None) -> None:
    """Replace the file at `path`. `retrained` is the configuration whose retraining has just succeeded, if any.

    Walks the whole workspace. Raises `OSError`, or `PipelineError` if the store fails, `path` is not a regular
    file, or another command holds the lock for `LOCK_SECONDS`.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise WorkspaceError(f"{path}: is not a regular file")
    with locks.hold(workspace.lock("metrics"), "writing the metrics", wait=True, timeout=LOCK_SECONDS):
        samples = _samples(workspace)
        models = [{"dataset": path.parent.name, "architecture": path.stem} for path in registry.pointers(workspace)]
        known = {_sample(SUCCESS, workspace, 0, **labels)[0] for labels in models}
        # Drop retired models: their last success would only grow old.
        samples += [(key, value) for key, value in _successes(path) if key in known]
        if retrained is not None:
            labels = {"dataset": retrained.data.name, "architecture": retrained.architecture.name}
            samples.append(_sample(SUCCESS, workspace, int(time.time()), **labels))
        latest = dict(samples)  # the last sample wins where labels repeat
        lines = []
        for name, (kind, help_) in METRICS.items():
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
            lines += [f"{key} {value}" for key, value in latest.items() if key.partition("{")[0] == name]
        write_atomically(path, "\n".join(lines) + "\n")


def _samples(workspace: Workspace) -> list[tuple[str, str]]:
    samples = []
    for path in registry.pointers(workspace):
        with contextlib.suppress(WorkspaceError, ValueError):  # damaged; Status and Retrain report it
            if pointer := registry.read(path):
                labels = {"dataset": path.parent.name, "architecture": path.stem}
                run = {"generation": pointer.generation, "run": pointer.run}
                samples.append(_sample("vgg_model_info", workspace, 1, **labels, **run))
                samples.append(_sample("vgg_model_accuracy", workspace, pointer.accuracy, **labels))
                since = datetime.datetime.fromisoformat(pointer.since.replace("Z", "+00:00"))
                name = "vgg_model_current_since_timestamp_seconds"
                samples.append(_sample(name, workspace, int(since.timestamp()), **labels))
    decided = collections.Counter(
        (str(event.get("dataset")), str(event.get("architecture")), event["event"])
        for event in events.read(workspace)
        if event.get("event") in (PROMOTED, REFUSED)
    )
    for data, architecture in sorted({key[:2] for key in decided}):
        for outcome in (PROMOTED, REFUSED):  # start at 0: Prometheus sees no increase in a counter that appears
            labels = {"dataset": data, "architecture": architecture, "outcome": outcome}
            count = decided[data, architecture, outcome]
            samples.append(_sample("vgg_generations_total", workspace, count, **labels))
    for kind, size in status.sizes(workspace).items():
        samples.append(_sample("vgg_workspace_bytes", workspace, size["bytes"], kind=kind))
    return samples


def _successes(path: Path) -> list[tuple[str, str]]:
    """Read the last successes from the existing file, the only record of runs in which nothing was due."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return re.findall(rf"^({SUCCESS}\{{.*\}}) (\d+)$", read_regular(path).decode(), re.MULTILINE)
    return []


def _sample(name: str, workspace: Workspace, value: float, **labels: str) -> tuple[str, str]:
    labels = {"workspace": workspace.shown(workspace.root), **labels}
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}}", str(value)


def _escaped(text: str) -> str:
    text = text.encode(errors="replace").decode()  # a file name may not be valid UTF-8
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
