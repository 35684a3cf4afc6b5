"""The schema of a configuration (keys, types, defaults, allowed values) and the fingerprint of an architecture.

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
    """A published data set: its title, its number of classes, and its archive in the binary layout."""

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

#: Label of everything made from the bundled sample.
SAMPLE_LABEL = "bundled sample, not CIFAR-10"

#: Renamed keys. A configuration that uses the old name is refused; the record of an older run is still read.
RENAMED = {"schedule": "retrain", "evaluation.views": "evaluation.tta"}

#: Part of every architecture fingerprint. Raise it when the same keys come to mean another network.
ARCHITECTURE_KEY_VERSION = 1

#: Keys of an architecture that were added later, with the values that give the network of the first version.
_ADDED_LATER = {"activation": "relu", "stem": 0, "pool": "last", "global_pool": "none"}

#: Side of the square input images, in pixels. Each block's pool halves it.
IMAGE_SIZE = 32
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
_Count = Annotated[int, Meta(ge=1)]
_Width = Annotated[int, Meta(ge=1, le=65536)]
_Fraction = Annotated[float, Meta(ge=0, lt=1)]
_NonNegative = Annotated[float, Meta(ge=0)]
_Positive = Annotated[float, Meta(gt=0)]
#: A factor of the learning rate. MXNet computes with the product of two in float32.
_Rate = Annotated[float, Meta(gt=0, le=1e18)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the images come from. Without `source`, `cifar10` and `cifar100` mean their official archives."""

    name: _Name = "cifar10"
    source: str = OFFICIAL["cifar10"].url
    sha256: _Sha256 | None = None
    mirrors: list[str] = []
    #: Share of the images to test on, for a folder of images without a train/test split of its own.
    test_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2

    @property
    def is_sample(self) -> bool:
        """Whether this is the sample drawn by code, which is not CIFAR-10."""
        return self.source == "bundled"

    @property
    def classes(self) -> int | None:
        """Number of classes implied by the name; None when only the images can tell."""
        return 10 if self.is_sample else OFFICIAL[self.name].classes if self.name in OFFICIAL else None


class BatchNorm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of batch normalisation. `batch_norm: true` means the defaults."""

    #: Whether each channel has a learned scale.
    scale: bool = True
    #: Share of the running statistics that each step keeps.
    momentum: _Fraction = 0.9


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network. Changing any value here starts a new run."""

    name: _Name
    conv_arch: Annotated[
        list[tuple[Annotated[int, Meta(ge=1, le=64)], Annotated[int, Meta(ge=1, le=8192)]]], Meta(min_length=1)
    ]
    batch_norm: bool | BatchNorm = False
    dense: list[_Width] = msgspec.field(default_factory=lambda: [4096, 4096])
    dropout: _Fraction = 0.5
    activation: Literal["relu", "gelu"] = "relu"
    #: Filters of a frozen, unpadded 2x2 convolution in front of the blocks that whitens the images; 0 for none.
    stem: Annotated[int, Meta(ge=0, le=1024)] = 0
    #: Which convolution of a block the max-pool follows. With `first`, the block's other convolutions cost a quarter.
    pool: Literal["last", "first"] = "last"
    #: `max` reduces each channel to its maximum after the last block.
    global_pool: Literal["none", "max"] = "none"
    #: None for as many as the data set has, see `with_classes` and `pipeline.workspace.freshness.Chain.config`.
    classes: Annotated[int, Meta(ge=2, le=256)] | None = None

    @property
    def outputs(self) -> int:
        """`classes`, once it is known."""
        assert self.classes is not None
        return self.classes

    @property
    def sides(self) -> list[int]:
        """Side of the images in pixels, before the first block and after each block."""
        side = IMAGE_SIZE - (1 if self.stem else 0)
        return [side >> pools for pools in range(len(self.conv_arch) + 1)]

    @property
    def norm(self) -> BatchNorm | None:
        return BatchNorm() if self.batch_norm is True else self.batch_norm or None


class Schedule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learning-rate schedule. `constant` and `step` do not depend on the number of epochs."""

    kind: Literal["constant", "step", "cosine", "triangle"] = "constant"
    warmup_epochs: _NonNegative = 0.0
    milestones: list[_Count] = []
    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    peak: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    final: _Fraction = 0.0


class Augmentation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Random augmentation of the training images, batch by batch."""

    pad_crop: Annotated[int, Meta(ge=0, le=16)] = 0
    #: What fills the border of a shifted image: black, or a reflection of the image.
    padding: Literal["zero", "reflect"] = "zero"
    flip: Literal["none", "random", "alternating"] = "none"
    cutout: Annotated[int, Meta(ge=0, le=32)] = 0


class LearningRateFactors(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learning-rate multipliers: `norm` for the offsets and scales of batch norm, `output` for the last layer."""

    norm: _Rate = 1.0
    output: _Rate = 1.0


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the network is trained. A change here, other than of `epochs`, does not retrain a finished run."""

    epochs: Annotated[int, Meta(ge=1, le=1_000_000)]
    batch_size: Annotated[int, Meta(ge=1, le=65536)] = 256
    #: `muon` is `nag` except for the convolutions after the first, see `pipeline.training.muon`.
    optimizer: Literal["sgd", "nag", "muon"] = "sgd"
    learning_rate: _Rate = 0.01
    momentum: _Fraction = 0.9
    weight_decay: Annotated[float, Meta(ge=0, le=1e18)] = 0.001
    weight_decay_exclude: list[Literal["bias", "norm"]] = []
    lr_mult: LearningRateFactors = LearningRateFactors()
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    normalize: bool = False
    #: `whitening` is `he` except for the first layer, whose filters whiten patches of the training images.
    initializer: Literal["xavier", "he", "whitening"] = "xavier"
    #: Start with an output layer of zeros, so that all classes are equally likely.
    zero_output: bool = False
    label_smoothing: _Fraction = 0.0
    validation_images: Annotated[int, Meta(ge=0)] = 2500
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    checkpoint_seconds: _Positive = 60.0
    #: Also write the learning curves for TensorBoard, to `train/tensorboard`; needs tensorboardX.
    tensorboard: bool = False
    init_from: str | None = None


class Evaluation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the trained network is evaluated and used. A change here reruns evaluation and export, never training."""

    #: Test-time augmentation: views averaged per prediction, one forward pass each; see `pipeline.evaluation.tta`.
    tta: Literal[1, 2, 6] = 1


class Retraining(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When `Retrain` makes a new generation, and when that generation becomes current."""

    every: Literal["day", "week", "month"] = "week"
    #: Start from the current model's weights instead of from scratch.
    warm_start: bool = False
    #: Train each generation with its own seed, derived from `training.seed` and its name.
    new_seed: bool = False
    #: How far a new model's accuracy may fall below the current one's, as a share of the test images.
    tolerance: _Fraction = 0.005
    #: How many of the newest promoted generations `Prune` keeps; the current and the previous one always stay.
    keep: _Count = 5


class Distributed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training over several processes or hosts; each batch is split among the workers."""

    workers: Annotated[int, Meta(ge=1, le=1024)] = 1


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One validated configuration.

    `launcher` and `distributed` say where the training runs; like `device`, they never cause retraining. `launcher`
    may name a file; `load` replaces the name with the list in that file.
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
        """Fingerprint of the architecture, see `fingerprint`."""
        return fingerprint(self.architecture)


def fingerprint(architecture: Architecture) -> str:
    """Return the SHA-256 (64 hex digits) of the canonical JSON of the architecture's values and the key version.

    Keys that were added later are left out at their defaults, so that older fingerprints stay valid.
    """
    values = msgspec.to_builtins(architecture)
    for key, default in _ADDED_LATER.items():
        if values[key] == default:
            del values[key]
    if architecture.batch_norm == BatchNorm():
        values["batch_norm"] = True
    value = {"key_version": ARCHITECTURE_KEY_VERSION, "architecture": values}
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_classes(config: Config, classes: int | None) -> Config:
    """Return `config` for a data set of `classes`, unless it sets the number of outputs itself."""
    if config.architecture.classes is not None or classes is None:
        return config
    architecture = msgspec.structs.replace(config.architecture, classes=classes)
    return msgspec.structs.replace(config, architecture=architecture)


def to_dict(config: Struct) -> dict[str, Any]:
    """Return the configuration as plain dicts, lists and scalars, every default spelled out."""
    return msgspec.to_builtins(config)


def to_record(config: Config) -> dict[str, Any]:
    """Like `to_dict`, without secrets, for files: redacts addresses and drops the launcher, which can hold a token."""
    data = config.data
    shown = msgspec.structs.replace(
        data, source=address.shown(data.source), mirrors=[address.shown(mirror) for mirror in data.mirrors]
    )
    return to_dict(msgspec.structs.replace(config, data=shown, launcher=[]))


def recorded_training(value: dict[str, Any]) -> dict[str, Any]:
    """Return the `training` mapping of an older run or checkpoint, `epochs` optional, with defaults for newer keys.

    So a new key never changes what an older run was trained with.
    """
    try:
        return to_dict(msgspec.convert({"epochs": 1, **value}, Training))
    except msgspec.ValidationError:
        return value  # made by a version with other keys: show them all
