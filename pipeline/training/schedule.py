"""The learning rate as a pure function of the step, so that resuming cannot change it."""

from __future__ import annotations

import math

from pipeline.config import Training


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of update number `step` (from 0) in a training of `training.epochs` epochs.

    With `constant` and `step`, a training whose `epochs` were raised resumes bit for bit as one long run. `cosine`
    (Loshchilov and Hutter 2016, arXiv:1608.03983) and `triangle` (Smith 2017, arXiv:1708.07120, one cycle: linear up to
    the fraction `peak` of all steps, then linear down) depend on the total number of steps: the training continues at
    the same step of the new, longer curve.
    """
    schedule, base = training.schedule, training.learning_rate
    total = training.epochs * steps_per_epoch
    warmup = schedule.warmup_epochs * steps_per_epoch
    # Use the middle of the step, so that neither the first nor the last step has a rate of zero.
    position = step + 0.5
    if position < warmup:
        return base * position / warmup
    if schedule.kind == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
        return base * schedule.factor**passed
    if schedule.kind == "cosine":
        done = min(1.0, (position - warmup) / max(1.0, total - warmup))
        return base * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2)
    if schedule.kind == "triangle":
        done = min(1.0, position / total)
        if done < schedule.peak:
            return base * done / schedule.peak
        return base * (1 - (1 - schedule.final) * (done - schedule.peak) / (1 - schedule.peak))
    return base


def depends_on_total(training: Training) -> bool:
    """Whether raising `epochs` changes the rate of earlier steps."""
    return training.schedule.kind in ("cosine", "triangle")
