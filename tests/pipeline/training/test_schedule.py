"""The learning rate at every step, against values worked out by hand."""

from __future__ import annotations

import pytest

from pipeline.config import Schedule, Training
from pipeline.training.schedule import depends_on_total, learning_rate


def rates(epochs=4, steps_per_epoch=5, base=1.0, **schedule):
    training = Training(epochs=epochs, learning_rate=base, schedule=Schedule(**schedule))
    return [learning_rate(training, step, steps_per_epoch) for step in range(epochs * steps_per_epoch)]


def test_constant_is_constant():
    assert set(rates(base=0.1)) == {0.1}


def test_step_multiplies_by_the_factor_at_each_milestone():
    found = rates(kind="step", milestones=[1, 3], factor=0.1)
    assert found == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 5)


def test_warmup_rises_in_a_line_and_never_starts_at_zero():
    found = rates(warmup_epochs=1)
    assert found[:5] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert set(found[5:]) == {1.0}


def test_cosine_goes_from_the_base_through_its_half_to_the_final_share():
    found = rates(kind="cosine", epochs=100, steps_per_epoch=1, final=0.1)
    assert found[0] == pytest.approx(1.0, abs=1e-3)
    assert (found[49] + found[50]) / 2 == pytest.approx(0.55)
    assert found[-1] == pytest.approx(0.1, abs=1e-3)
    assert found == sorted(found, reverse=True)


def test_cosine_after_a_warmup_starts_at_the_base():
    found = rates(kind="cosine", epochs=10, steps_per_epoch=10, warmup_epochs=1)
    assert max(found) == pytest.approx(1.0, abs=1e-3)
    assert found.index(max(found)) == 10


def test_triangle_peaks_at_its_share_and_falls_to_the_final_one():
    found = rates(kind="triangle", epochs=20, steps_per_epoch=5, peak=0.25, final=0.0)
    assert found[12:25] == pytest.approx([(step + 0.5) / 25 for step in range(12, 25)])
    assert found[25:] == pytest.approx([1 - (step + 0.5 - 25) / 75 for step in range(25, 100)])
    assert min(found) > 0, "a step with a rate of zero is wasted"


@pytest.mark.parametrize("kind", ["constant", "step"])
def test_raising_epochs_leaves_the_rates_of_earlier_steps_alone(kind):
    more = {"milestones": [2]} if kind == "step" else {}
    assert rates(epochs=9, kind=kind, warmup_epochs=1, **more)[:20] == rates(
        epochs=4, kind=kind, warmup_epochs=1, **more
    )
    assert not depends_on_total(Training(epochs=1, schedule=Schedule(kind=kind, **more)))


@pytest.mark.parametrize("kind", ["cosine", "triangle"])
def test_schedules_that_depend_on_the_total_say_so(kind):
    assert rates(epochs=9, kind=kind)[:20] != rates(epochs=4, kind=kind)
    assert depends_on_total(Training(epochs=1, schedule=Schedule(kind=kind)))
