"""A workspace in figures for Prometheus, as a file that node_exporter's textfile collector reads.

Reads the registry, the event log, the sizes of all files, and the file that it replaces.
"""

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

#: The figures, each with its type and what it says.
FIGURES = {
    "vgg_model_info": ("gauge", "1; the labels name the generation and the run that is current."),
    "vgg_model_accuracy": ("gauge", "Share of the test images that the current model classifies correctly."),
    "vgg_model_current_since_timestamp_seconds": ("gauge", "When the current model became current."),
    "vgg_generations_total": ("counter", "Decisions of the promotion gate, by outcome."),
    "vgg_retrain_last_success_timestamp_seconds": ("gauge", "When Retrain last ended with exit code 0 on this host."),
    "vgg_workspace_bytes": ("gauge", "Size of all files of a kind."),
}

SUCCESS = "vgg_retrain_last_success_timestamp_seconds"


def write(path: Path, workspace: Workspace, retrained: Config | None = None) -> None:
    """Replace the file at `path`; `retrained` is the configuration that was retrained with success just now.

    Walks the whole workspace. Raises `OSError`, or `PipelineError` from a store or for what is no file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise WorkspaceError(f"{path}: is no regular file")
    with locks.hold(workspace.lock("metrics"), "the metrics", wait=True):
        found = _figures(workspace)
        models = {key.partition("{")[2] for key, _ in found}
        # Of models that are current: the time of one that was retired would only grow old.
        found += [(key, value) for key, value in _successes(path) if key.partition("{")[2] in models]
        if retrained is not None:
            about = {"dataset": retrained.data.name, "architecture": retrained.architecture.name}
            found.append(_sample(SUCCESS, workspace, int(time.time()), **about))
        samples = dict(found)  # of two with the same labels the later one
        lines = []
        for name, (kind, help_) in FIGURES.items():
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
            lines += [f"{key} {value}" for key, value in samples.items() if key.partition("{")[0] == name]
        write_atomically(path, "\n".join(lines) + "\n")


def _figures(workspace: Workspace) -> list[tuple[str, str]]:
    found = []
    for path in registry.pointers(workspace):
        with contextlib.suppress(WorkspaceError, ValueError):  # damaged, which Status and Retrain tell
            if pointer := registry.read(path):
                about = {"dataset": path.parent.name, "architecture": path.stem}
                run = {"generation": pointer.generation, "run": pointer.run}
                found.append(_sample("vgg_model_info", workspace, 1, **about, **run))
                found.append(_sample("vgg_model_accuracy", workspace, pointer.accuracy, **about))
                since = datetime.datetime.fromisoformat(pointer.since.replace("Z", "+00:00"))
                name = "vgg_model_current_since_timestamp_seconds"
                found.append(_sample(name, workspace, int(since.timestamp()), **about))
    decided = collections.Counter(
        (str(event.get("dataset")), str(event.get("architecture")), event["event"])
        for event in events.read(workspace)
        if event.get("event") in (PROMOTED, REFUSED)
    )
    for data, architecture in sorted({key[:2] for key in decided}):
        for outcome in (PROMOTED, REFUSED):  # 0 where there was none: a counter that appears is no increase
            about = {"dataset": data, "architecture": architecture, "outcome": outcome}
            count = decided[data, architecture, outcome]
            found.append(_sample("vgg_generations_total", workspace, count, **about))
    for kind, size in status.sizes(workspace).items():
        found.append(_sample("vgg_workspace_bytes", workspace, size["bytes"], kind=kind))
    return found


def _successes(path: Path) -> list[tuple[str, str]]:
    """The successes that the present file tells of; nobody else remembers nights on which nothing was due."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return re.findall(rf"^({SUCCESS}\{{.*\}}) (\d+)$", read_regular(path).decode(), re.MULTILINE)
    return []


def _sample(name: str, workspace: Workspace, value: float, **labels: str) -> tuple[str, str]:
    labels = {"workspace": workspace.shown(workspace.root), **labels}
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{told}}}", str(value)


def _escaped(text: str) -> str:
    text = text.encode(errors="replace").decode()  # a file name can hold half a character
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
