"""A month of the nightly job in five nights; `benchmarks/month.py` has all thirty."""

from __future__ import annotations

from pathlib import Path

from luigid_process import Luigid
from nightly_job import Night, NightlyJob

NIGHTS = [
    Night(),
    Night(wrong=60, outcome="refused"),
    Night(images=4, corrected=True, back_to=2),
    Night(outcome=""),
    Night(images=4),
]


def test_nights_with_wrong_labels_a_refusal_and_a_roll_back_are_told_right_and_a_service_never_fails(
    tmp_path: Path, central: Luigid
) -> None:
    job = NightlyJob(tmp_path / "job", central, len(NIGHTS))
    first, refused, corrected, unchanged, last = job.month(NIGHTS)
    assert refused.accuracy
    assert corrected.accuracy
    assert refused.accuracy < corrected.accuracy - 0.2
    assert [night.current for night in (refused, corrected, unchanged, last)] == [
        first.generation, first.generation, first.generation, last.generation,
    ]  # fmt: skip
    assert job.service
    assert [model["generation"] for model in job.service.loaded()] == [
        first.generation, corrected.generation, first.generation, last.generation,
    ]  # fmt: skip
    assert job.reads > 100
