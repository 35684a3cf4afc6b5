"""Progress on its way: the last word gets to the scheduler, nobody waits for a turn."""

from __future__ import annotations

import logging
import threading

import pytest

import tasks
from pipeline.errors import StageFailed
from tasks import command_log
from tasks.progress import SchedulerProgress, line


class Task:
    """What Luigi gives a running task."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.shares: list[int] = []
        self.first = threading.Event()

    def set_status_message(self, message: str) -> None:
        self.said.append((threading.current_thread().name, message))

    def set_progress_percentage(self, share: int) -> None:
        self.shares.append(share)
        self.first.set()


def test_the_end_of_a_stage_sends_the_last_word_at_once_whatever_the_turn() -> None:
    task = Task()
    voice = SchedulerProgress(task, seconds=3600)
    voice.say(0.0, "half <way>")
    assert task.first.wait(60)
    voice.say(1.0, "done")
    voice.close()
    assert not voice._thread.is_alive()
    assert [message for _, message in task.said] == ["half &lt;way&gt;", "done"]
    assert {name for name, _ in task.said} == {"scheduler-voice"}
    assert task.shares == [1, 100]


@pytest.mark.parametrize(
    ("left", "time_shown"), [(None, "1:01 so far"), (0.4, "0:00 left"), (75, "1:15 left"), (7325, "2:02:05 left")]
)
def test_a_bar_begins_with_per_cent_and_time(left: float | None, time_shown: str) -> None:
    text = "epoch 12/20, step 34/200, loss 1.234, validation accuracy 78.9%, 1,234 images/s"
    assert line(0.456, 61.0, left, text) == f"{'━' * 9}{'─' * 11}  45 % {time_shown:>12}  {text}"


def test_the_log_of_two_trainings_tells_them_apart() -> None:
    task = tasks.TrainVGG(config="config/quickstart.yaml", workspace="nowhere")
    for said in ("train: its process was killed", "the loss is no longer a finite number"):
        about = ("[pid %s] Worker %s failed    %s", (1, "w", task), (StageFailed, StageFailed(said), None))
        record = logging.LogRecord("luigi-interface", logging.ERROR, "", 0, *about)
        assert command_log.without_traceback(record)
        assert record.getMessage() == f"train vgg11-quick-4d872bc8: {said.removeprefix('train: ')}"


def test_a_scheduler_that_is_gone_breaks_nothing() -> None:
    task = Task()
    task.set_status_message = task.set_progress_percentage = lambda value: 1 / 0  # type: ignore[method-assign,assignment]
    voice = SchedulerProgress(task, seconds=0)
    voice.say(0.5, "anything")
    voice.close()
    assert not voice._thread.is_alive()
