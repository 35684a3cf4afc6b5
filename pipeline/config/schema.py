"""The keys of a configuration: names, types, defaults, allowed values, and what names an architecture.

Imports nothing heavier than msgspec: a finished chain must be recognised in a third of a second.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from pipeline import address


class Official(NamedTuple):
    """A published data set: what people call it, and its archive in the binary layout."""

    title: str
    classes: int
    url: str
    sha256: str


#: By `data.name`.
OFFICIAL = {
    "cifar10": Official(
        "CIFAR-10",
        10,
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar100": Official(
        "CIFAR-100",
        100,
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
}

#: What people are told that the sample drawn by code is.
SAMPLE_LABEL = "bundled sample, not CIFAR-10"

#: Keys that had another name once. A configuration with the old one is refused; what a run recorded is still read.
RENAMED = {"schedule": "retrain", "evaluation.views": "evaluation.tta"}

#: Part of every architecture fingerprint. Raise it when the same keys come to mean another network.
ARCHITECTURE_KEY_VERSION = 1

#: Keys of an architecture that there were not in its first version, with the network of that version.
_LATER = {"activation": "relu", "stem": 0, "pool": "last", "global_pool": "none"}

#: Side of the square input images, in pixels. Each block's pool halves it.
IMAGE_SIZE = 32
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
_Count = Annotated[int, Meta(ge=1)]
_Width = Annotated[int, Meta(ge=1, le=65536)]
_Fraction = Annotated[float, Meta(ge=0, lt=1)]
_NonNegative = Annotated[float, Meta(ge=0)]
_Positive = Annotated[float, Meta(gt=0)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the images come from. Without `source`, `cifar10` and `cifar100` mean their official archives."""

    name: _Name = "cifar10"
    source: str = OFFICIAL["cifar10"].url
    sha256: _Sha256 | None = None
    mirrors: list[str] = []
    #: For a folder of images that does not say which ones are for the test: the share of them that is.
    test_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2

    @property
    def is_sample(self) -> bool:
        """True for the sample drawn by code, which is not CIFAR-10."""
        return self.source == "bundled"

    @property
    def classes(self) -> int | None:
        """How many classes the data set has by its name; None when only its images can tell."""
        return 10 if self.is_sample else OFFICIAL[self.name].classes if self.name in OFFICIAL else None


class BatchNorm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Batch normalisation in detail. `batch_norm: true` stands for the defaults."""

    #: Whether each channel has a learned factor.
    scale: bool = True
    #: How much of the running statistics a step keeps.
    momentum: _Fraction = 0.9


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network. Any change of a value here means another run."""

    name: _Name
    conv_arch: Annotated[
        list[tuple[Annotated[int, Meta(ge=1, le=64)], Annotated[int, Meta(ge=1, le=8192)]]], Meta(min_length=1)
    ]
    batch_norm: bool | BatchNorm = False
    dense: list[_Width] = msgspec.field(default_factory=lambda: [4096, 4096])
    dropout: _Fraction = 0.5
    activation: Literal["relu", "gelu"] = "relu"
    #: Filters of a frozen 2x2 convolution without padding before the blocks, which whitens the images; 0: none.
    stem: Annotated[int, Meta(ge=0, le=1024)] = 0
    #: Which convolution of a block its max-pool follows. After the first one, the others cost a quarter.
    pool: Literal["last", "first"] = "last"
    #: `max`: after the last block each channel is reduced to its maximum.
    global_pool: Literal["none", "max"] = "none"
    #: None: as many as the data set has, see `with_classes` and `pipeline.workspace.freshness.Chain.config`.
    classes: Annotated[int, Meta(ge=2, le=256)] | None = None

    @property
    def outputs(self) -> int:
        """`classes`, which must be known."""
        assert self.classes is not None
        return self.classes

    @property
    def sides(self) -> list[int]:
        """Side of the images, in pixels, before the blocks and after each of them."""
        side = IMAGE_SIZE - (1 if self.stem else 0)
        return [side >> pools for pools in range(len(self.conv_arch) + 1)]

    @property
    def norm(self) -> BatchNorm | None:
        """The batch normalisation, if any."""
        return BatchNorm() if self.batch_norm is True else self.batch_norm or None


class Schedule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the learning rate moves. `constant` and `step` do not depend on the number of epochs."""

    kind: Literal["constant", "step", "cosine", "triangle"] = "constant"
    warmup_epochs: _NonNegative = 0.0
    milestones: list[_Count] = []
    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    peak: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    final: _Fraction = 0.0


class Augmentation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Random changes of the training images, made batch by batch."""

    pad_crop: Annotated[int, Meta(ge=0, le=16)] = 0
    #: What a shifted image shows beyond its border: black, or its mirror image.
    padding: Literal["zero", "reflect"] = "zero"
    flip: Literal["none", "random", "alternating"] = "none"
    cutout: Annotated[int, Meta(ge=0, le=32)] = 0


class LearningRateFactors(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Factors of the learning rate: `norm` for the offsets and scales of batch norm, `output` for the last layer."""

    norm: _Positive = 1.0
    output: _Positive = 1.0


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the network is trained. Apart from `epochs`, a change here does not retrain a finished run."""

    epochs: Annotated[int, Meta(ge=1, le=1_000_000)]
    batch_size: Annotated[int, Meta(ge=1, le=65536)] = 256
    #: `muon` is `nag` but for the convolutions after the first, see `pipeline.training.muon`.
    optimizer: Literal["sgd", "nag", "muon"] = "sgd"
    learning_rate: _Positive = 0.01
    momentum: _Fraction = 0.9
    weight_decay: _NonNegative = 0.001
    weight_decay_exclude: list[Literal["bias", "norm"]] = []
    lr_mult: LearningRateFactors = LearningRateFactors()
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    normalize: bool = False
    #: `whitening` is `he` but for the first layer, whose filters then whiten patches of the training images.
    initializer: Literal["xavier", "he", "whitening"] = "xavier"
    #: Start with an output layer of zeros, for which all classes are equally likely.
    zero_output: bool = False
    label_smoothing: _Fraction = 0.0
    validation_images: Annotated[int, Meta(ge=0)] = 2500
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    checkpoint_seconds: _Positive = 60.0
    #: Write the learning curves for TensorBoard as well, to `train/tensorboard`; needs tensorboardX.
    tensorboard: bool = False
    init_from: str | None = None


class Evaluation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the trained network is measured and used. A change here evaluates and exports again, it never retrains."""

    #: Test-time augmentation: views averaged per prediction, see `pipeline.evaluation.tta`; each is a forward pass.
    tta: Literal[1, 2, 6] = 1


class Retraining(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When `Retrain` makes a new generation, and when that one becomes current."""

    every: Literal["day", "week", "month"] = "week"
    #: Start from the current model's weights instead of from scratch.
    warm_start: bool = False
    #: Train each generation with a seed of its own, made from `training.seed` and its name.
    new_seed: bool = False
    #: How much less than the current model's the accuracy of a new one may be, as a share of the test images.
    tolerance: _Fraction = 0.005
    #: How many of the newest promoted generations `Prune` keeps; the current and the previous one always stay.
    keep: _Count = 5


class Distributed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training over several processes or hosts; each batch is divided among the workers."""

    workers: Annotated[int, Meta(ge=1, le=1024)] = 1


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One validated configuration.

    `launcher` and `distributed` say where the training runs: like `device`, they never retrain. `launcher` may be
    given as the name of a file that holds it; `load` puts the list in its place.
    """

    data: Data = Data()
    architecture: Architecture
    training: Training
    evaluation: Evaluation = Evaluation()
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|gpu|(cpu|gpu):\d{1,3}(,\d{1,3})*)\Z")] = "auto"
    retrain: Retraining = Retraining()
    launcher: list[str] | str = []
    distributed: Distributed = Distributed()

    @property
    def fingerprint(self) -> str:
        """The architecture's fingerprint, see `fingerprint`."""
        return fingerprint(self.architecture)


def fingerprint(architecture: Architecture) -> str:
    """SHA-256 (64 hex digits) over the canonical JSON of the architecture's values and the key version.

    Keys that came later count only with another value than their default, the network of before.
    """
    values = msgspec.to_builtins(architecture)
    for key, default in _LATER.items():
        if values[key] == default:
            del values[key]
    if architecture.batch_norm == BatchNorm():
        values["batch_norm"] = True
    value = {"key_version": ARCHITECTURE_KEY_VERSION, "architecture": values}
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_classes(config: Config, classes: int | None) -> Config:
    """`config` for a data set of so many classes, unless it says itself how many outputs the network has."""
    if config.architecture.classes is not None or classes is None:
        return config
    architecture = msgspec.structs.replace(config.architecture, classes=classes)
    return msgspec.structs.replace(config, architecture=architecture)


def to_dict(config: Struct) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars, every default spelled out."""
    return msgspec.to_builtins(config)


def to_record(config: Config) -> dict[str, Any]:
    """As `to_dict`, without secrets, for files: addresses as they may be shown, no launcher, which can hold a token."""
    data = config.data
    shown = msgspec.structs.replace(
        data, source=address.shown(data.source), mirrors=[address.shown(mirror) for mirror in data.mirrors]
    )
    return to_dict(msgspec.structs.replace(config, data=shown, launcher=[]))


def recorded_training(value: dict[str, Any]) -> dict[str, Any]:
    """The `training` of a run or checkpoint, with the defaults of the keys that there were not when it was made.

    So an upgrade that brings a key changes nothing about what was trained before. `epochs` may be missing.
    """
    try:
        return to_dict(msgspec.convert({"epochs": 1, **value}, Training))
    except msgspec.ValidationError:
        return value  # made by a version that knew other keys: all of them are shown
