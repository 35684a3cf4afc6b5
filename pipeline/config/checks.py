"""Checks of a configuration that the types of its schema cannot express."""

from __future__ import annotations

import math
import re
from typing import Any

from pipeline import address
from pipeline.config.difference import flatten, shown
from pipeline.config.schema import Config, Schedule, Training, to_dict
from pipeline.errors import ConfigError


def check_meaning(config: Config, value: Any, where: str) -> None:
    """Raise `ConfigError` for invalid values of the right types; `value` is the configuration as given."""
    _check_leaves(config, where)
    _check_data(config, value, where)
    _check_network(config, where)
    _check_milestones(config.training.schedule, f"{where}: training.schedule")
    if isinstance(config.launcher, list):
        check_launcher(config.launcher, f"{where}: launcher")
    devices = config.device.partition(":")[2].split(",")
    if len(set(devices)) != len(devices):
        raise ConfigError(f"{where}: device: found {config.device}, the same device twice")


def check_launcher(arguments: list[str], where: str) -> None:
    """Raise `ConfigError` if an argument of the launcher is empty or contains a NUL."""
    if any("\0" in argument or not argument for argument in arguments):
        raise ConfigError(f"{where}: found {shown(arguments)}; an argument must not be empty or contain a NUL")


def _check_leaves(config: Config, where: str) -> None:
    for key, leaf in flatten(to_dict(config)):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise ConfigError(f"{where}: {key}: found {leaf}, expected a finite number")
        if isinstance(leaf, str) and re.search("[\ud800-\udfff]", leaf):
            raise ConfigError(f"{where}: {key}: found {leaf!a}, which cannot be written as UTF-8")
        is_location = key.startswith(("data.source", "data.mirrors", "training.init_from"))
        if is_location and isinstance(leaf, str) and not re.fullmatch(r"[^\x00-\x1f\x7f]+", leaf):
            raise ConfigError(f"{where}: {key}: found {shown(leaf)}, expected an address or path, in one line")


def _check_data(config: Config, value: Any, where: str) -> None:
    data = config.data
    if data.name == "sample" and not data.is_sample:
        found = address.shown(data.source) if "source" in value["data"] else "nothing"
        raise ConfigError(f"{where}: data.source: found {found}, but data.name sample needs source: bundled")
    if data.is_sample and data.name != "sample":
        raise ConfigError(f"{where}: data.name: found {data.name}, but source bundled needs name: sample")


def _check_network(config: Config, where: str) -> None:
    architecture, training = config.architecture, config.training
    side, *_, last = architecture.sides
    if not last:
        raise ConfigError(
            f"{where}: architecture.conv_arch: found {len(architecture.conv_arch)} blocks, each halving the image; "
            f"{side}x{side} pixels allow at most {side.bit_length() - 1}"
        )
    if training.optimizer != "sgd" and training.momentum == 0:
        raise ConfigError(f"{where}: training.momentum: found 0, but optimizer {training.optimizer} needs momentum > 0")


def _check_milestones(schedule: Schedule, where: str) -> None:
    if schedule.kind == "step" and not schedule.milestones:
        raise ConfigError(f"{where}.milestones: missing; kind step needs the epochs of its steps")
    if schedule.milestones and schedule.kind != "step":
        raise ConfigError(f"{where}.milestones: found kind {schedule.kind}, but only kind step has milestones")
    if sorted(set(schedule.milestones)) != schedule.milestones:
        raise ConfigError(f"{where}.milestones: found {schedule.milestones}, must be ascending")


def check_classes(config: Config, where: str) -> None:
    """Raise `ConfigError` if the network has fewer outputs than the named data set has classes."""
    name, needed, outputs = config.data.name, config.data.classes, config.architecture.classes
    if needed and outputs and outputs < needed:
        raise ConfigError(
            f"{where}: found {outputs}, but {name} has {needed} classes; set it to {needed}, or leave it out"
        )


def check_combinations(config: Config, where: str) -> None:
    """Raise `ConfigError` for a key that needs another key. Called for files only, see `check_schedule`."""
    architecture, training = config.architecture, config.training
    if architecture.stem and training.initializer != "whitening":
        raise ConfigError(
            f"{where}: architecture.stem: found {architecture.stem}, but its filters are never trained and need "
            f"training.initializer: whitening, found {training.initializer}"
        )
    if training.augmentation.padding != "zero" and not training.augmentation.pad_crop:
        raise ConfigError(
            f"{where}: training.augmentation.padding: found {training.augmentation.padding}, but without pad_crop "
            "no image is shifted: leave it out, or give pad_crop"
        )


#: Keys of the schedule, with the kinds that use them.
_SCHEDULE_KEYS = {
    "warmup_epochs": ("constant", "step", "cosine"),
    "milestones": ("step",),
    "factor": ("step",),
    "peak": ("triangle",),
    "final": ("cosine", "triangle"),
}


def check_schedule(training: Training, where: str) -> None:
    """Raise `ConfigError` for schedule keys without effect (unless at their default) or with an impossible value.

    Called for files only, because older runs with such a schedule must stay readable.
    """
    schedule, epochs = training.schedule, training.epochs
    for key, kinds in _SCHEDULE_KEYS.items():
        found = getattr(schedule, key)
        if schedule.kind not in kinds and found != getattr(Schedule(), key):
            why = "has its own warm-up" if key == "warmup_epochs" else "ignores it"
            raise ConfigError(
                f"{where}.{key}: found {shown(found)}, but kind {schedule.kind} {why}: leave it out, or use kind "
                + " or ".join(kinds)
            )
    if schedule.warmup_epochs >= epochs:
        raise ConfigError(
            f"{where}.warmup_epochs: found {schedule.warmup_epochs:g}, expected less than training.epochs, {epochs}"
        )
    late = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if late:
        raise ConfigError(
            f"{where}.milestones: found {late[0]}, but the training ends with epoch {epochs}: leave it out, and add it "
            "when you raise training.epochs (the result is the same)"
        )
    if schedule.milestones and schedule.milestones[0] <= schedule.warmup_epochs:
        raise ConfigError(
            f"{where}.milestones: found {schedule.milestones[0]}, expected more than warmup_epochs, "
            f"{schedule.warmup_epochs:g}"
        )
