"""The configuration of a run: one YAML file, validated before anything runs."""

from pipeline.config.difference import differences
from pipeline.config.loading import from_dict, from_record, load, load_launcher, ready_made_folder, with_launcher
from pipeline.config.schema import (
    IMAGE_SIZE,
    OFFICIAL,
    SAMPLE_LABEL,
    Architecture,
    Augmentation,
    Config,
    Data,
    Evaluation,
    Schedule,
    Training,
    fingerprint,
    recorded_training,
    to_dict,
    to_record,
    with_classes,
)

__all__ = [
    "IMAGE_SIZE",
    "OFFICIAL",
    "SAMPLE_LABEL",
    "Architecture",
    "Augmentation",
    "Config",
    "Data",
    "Evaluation",
    "Schedule",
    "Training",
    "differences",
    "fingerprint",
    "from_dict",
    "from_record",
    "load",
    "load_launcher",
    "ready_made_folder",
    "recorded_training",
    "to_dict",
    "to_record",
    "with_classes",
    "with_launcher",
]
