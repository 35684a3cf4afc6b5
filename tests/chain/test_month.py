"""A month of the nightly job in five nights; `benchmarks/month.py` has all thirty."""

from __future__ import annotations

from pathlib import Path

from luigid_process import Luigid
from nightly_job import Night, NightlyJob

NIGHTS = [
    Night(),
    Night(images=4, wrong=60, outcome="refused"),
    Night(outcome=""),
    Night(images=4, corrected=True, back_to=3),
    Night(outcome=""),
]


def test_nights_with_wrong_labels_a_refusal_and_a_roll_back_are_reported_correctly_and_a_service_never_fails(
    tmp_path: Path, central: Luigid
) -> None:
    job = NightlyJob(tmp_path / "job", central, len(NIGHTS))
    first, _, _, corrected, unchanged = job.month(NIGHTS)
    assert [corrected.current, unchanged.current] == [first.generation] * 2
    assert job.service
    loaded = [model["generation"] for model in job.service.loaded()]
    assert loaded == [first.generation, corrected.generation, first.generation]
    assert job.reads > 20
