"""Progress on its way to the scheduler: the last word gets there, and nobody waits for the next turn."""

from __future__ import annotations

import threading

from tasks.progress import SchedulerVoice


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
    voice = SchedulerVoice(task, seconds=3600)
    voice.say(0.0, "half <way>")
    assert task.first.wait(60)
    voice.say(1.0, "done")
    voice.close()
    assert not voice._thread.is_alive()
    assert [message for _, message in task.said] == ["half &lt;way&gt;", "done"]
    assert {name for name, _ in task.said} == {"scheduler-voice"}
    assert task.shares == [1, 100]


def test_a_scheduler_that_is_gone_breaks_nothing() -> None:
    task = Task()
    task.set_status_message = task.set_progress_percentage = lambda value: 1 / 0  # type: ignore[method-assign,assignment]
    voice = SchedulerVoice(task, seconds=0)
    voice.say(0.5, "anything")
    voice.close()
    assert not voice._thread.is_alive()
