"""Progress reports: the last one reaches the scheduler, and nothing waits for the next interval."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tasks
from pipeline.errors import StageFailed
from tasks import command_log, progress


class Task:
    """The callbacks that Luigi gives a running task."""

    display_name = "train tiny"

    def __init__(self) -> None:
        self.reports: list[tuple[str, str]] = []
        self.percentages: list[int] = []
        self.first = threading.Event()

    def set_status_message(self, message: str) -> None:
        self.reports.append((threading.current_thread().name, message))

    def set_progress_percentage(self, percentage: int) -> None:
        self.percentages.append(percentage)
        self.first.set()


def report(task: Any, message: str) -> progress.Progress:
    with progress.Progress(task, Path("train.log"), ["stop"]) as shown:
        shown.show({"event": "progress", "fraction": 0.0, "message": message})
        assert task.first.wait(60)
        shown.show({"event": "note", "message": "done"})
    return shown


@pytest.mark.parametrize("busy", [False, True])
def test_the_end_of_a_stage_sends_the_last_report_at_once(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "vgg", lambda: SimpleNamespace(report_seconds=3600))
    task = Task()
    if busy:  # the scheduler has not answered the first report yet

        def set_progress_percentage(percentage: int) -> None:
            Task.set_progress_percentage(task, percentage)
            time.sleep(0.3)

        task.set_progress_percentage = set_progress_percentage  # type: ignore[method-assign]
    shown = report(task, "half <way>, 1 s left")
    assert not shown._thread.is_alive()
    assert [message for _, message in task.reports] == [
        "half &lt;way&gt;\n1 s left\nlog: train.log\nmessages: stop",
        "done\nlog: train.log",
    ]
    assert {name for name, _ in task.reports} == {"scheduler-progress"}
    assert task.percentages == [1, 100]


@pytest.mark.parametrize(
    ("left", "time_shown"), [(None, "1:01 so far"), (0.4, "0:00 left"), (75, "1:15 left"), (7325, "2:02:05 left")]
)
def test_a_bar_begins_with_percentage_and_time(left: float | None, time_shown: str) -> None:
    text = "epoch 12/20, step 34/200, loss 1.234, validation accuracy 78.9%, 1,234 images/s"
    assert progress.render_bar(0.456, 61.0, left, text) == f"{'━' * 9}{'─' * 11}  45 % {time_shown:>12}  {text}"


def test_log_lines_name_the_training() -> None:
    task = tasks.TrainVGG(config="config/quickstart.yaml", workspace="nowhere")
    for message in ("train: its process was killed", "the loss is no longer a finite number"):
        about = ("[pid %s] Worker %s failed    %s", (1, "w", task), (StageFailed, StageFailed(message), None))
        record = logging.LogRecord("luigi-interface", logging.ERROR, "", 0, *about)
        assert command_log.shorten_error(record)
        assert record.getMessage() == f"train vgg11-quick-4d872bc8: {message.removeprefix('train: ')}"


def test_a_lost_scheduler_breaks_nothing() -> None:
    task = Task()
    task.set_status_message = task.set_progress_percentage = lambda value: 1 / 0  # type: ignore[method-assign,assignment]
    task.first.set()
    assert not report(task, "anything")._thread.is_alive()
