"""The configuration of a run: one YAML file, validated before anything runs.

Reads YAML, leaves nothing behind. `load` gives a frozen `Config`; `fingerprint` names an architecture by value;
`differences` tells two configurations apart key by key. Imports nothing heavier than msgspec and PyYAML, because
a finished chain must be recognised in a third of a second.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from pipeline import address
from pipeline.errors import ConfigError
from pipeline.files import check_path, expanded

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
OFFICIAL_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

#: Keys that had another name once. A configuration with the old one is refused; what a run recorded is still read.
RENAMED = {"schedule": "retrain", "evaluation.views": "evaluation.tta"}

#: How every `config.yaml` begins that a training recorded.
_RECORDED = "# The full configuration that "

#: Part of every architecture fingerprint. Raise it when the same keys come to mean another network.
ARCHITECTURE_KEY_VERSION = 1

#: Side of the square input images, in pixels. Each block's pool halves it.
IMAGE_SIZE = 32

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
_Count = Annotated[int, Meta(ge=1)]
_Width = Annotated[int, Meta(ge=1, le=65536)]
_Fraction = Annotated[float, Meta(ge=0, lt=1)]
_NonNegative = Annotated[float, Meta(ge=0)]
_Positive = Annotated[float, Meta(gt=0)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]


#: What people are told that the sample drawn by code is.
SAMPLE_LABEL = "bundled sample, not CIFAR-10"


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the images come from. Without `source`, `cifar10` means the official archive."""

    name: _Name = "cifar10"
    source: str = OFFICIAL_URL
    sha256: _Sha256 | None = None
    mirrors: list[str] = []

    @property
    def is_sample(self) -> bool:
        """True for the sample drawn by code, which is not CIFAR-10."""
        return self.source == "bundled"


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network. Any change of a value here means another run."""

    name: _Name
    conv_arch: Annotated[
        list[tuple[Annotated[int, Meta(ge=1, le=64)], Annotated[int, Meta(ge=1, le=8192)]]], Meta(min_length=1)
    ]
    batch_norm: bool = False
    dense: list[_Width] = msgspec.field(default_factory=lambda: [4096, 4096])
    dropout: _Fraction = 0.5
    classes: Annotated[int, Meta(ge=2, le=256)] = 10


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
    flip: Literal["none", "random", "alternating"] = "none"
    cutout: Annotated[int, Meta(ge=0, le=32)] = 0


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
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    normalize: bool = False
    #: `whitening` is `he` but for the first layer, whose filters then whiten patches of the training images.
    initializer: Literal["xavier", "he", "whitening"] = "xavier"
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
    #: How many generations `Prune` keeps, apart from the current one.
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
    """SHA-256 (64 hex digits) over the canonical JSON of the architecture's values and the key version."""
    value = {"key_version": ARCHITECTURE_KEY_VERSION, "architecture": msgspec.to_builtins(architecture)}
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_dict(config: Struct) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars, every default spelled out."""
    return msgspec.to_builtins(config)


def to_record(config: Config) -> dict[str, Any]:
    """As `to_dict`, with addresses as they may be shown: what is written to files."""
    data = config.data
    shown = msgspec.structs.replace(
        data, source=address.shown(data.source), mirrors=[address.shown(mirror) for mirror in data.mirrors]
    )
    return to_dict(msgspec.structs.replace(config, data=shown))


def recorded_training(value: dict[str, Any]) -> dict[str, Any]:
    """The `training` of a run or checkpoint, with the defaults of the keys that there were not when it was made.

    So an upgrade that brings a key changes nothing about what was trained before. `epochs` may be missing.
    """
    try:
        return to_dict(msgspec.convert({"epochs": 1, **value}, Training))
    except msgspec.ValidationError:
        return value  # made by a version that knew other keys: all of them are shown


def from_dict(value: Any, where: str = "configuration") -> Config:
    """Validate plain dicts and lists; raises `ConfigError` naming `where` and the key path."""
    try:
        config = msgspec.convert(value, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), value)}") from None
    _check_meaning(config, value, where)
    return config


def from_record(value: Any, where: str = "configuration") -> Config:
    """As `from_dict`, for a configuration that a run recorded, maybe when keys had other names."""
    return from_dict(_with_new_names(value), where)


def _with_new_names(value: Any, prefix: str = "") -> Any:
    if not isinstance(value, dict):
        return value
    paths = {f"{prefix}{key}": item for key, item in value.items()}
    return {
        RENAMED.get(path, path).rpartition(".")[2]: _with_new_names(item, f"{path}.") for path, item in paths.items()
    }


def load(path: str | os.PathLike[str]) -> Config:
    """Read and validate one YAML file; raises `ConfigError` with file, key path, found and allowed.

    A name that does not exist here but is one of the ready-made files (`config/vgg11.yaml`) is read from the
    installed plugin. Relative paths inside the file are taken from the file's own folder. The environment
    variable `CIFAR10_SOURCE` replaces the source of a `cifar10` data set.
    """
    check_path(path, "--config")
    file = find(path)
    value = parse_yaml(file, str(path))
    config = from_record(value, str(path)) if _is_recorded(file) else from_dict(value, str(path))
    _check_schedule(config.training, f"{path}: training.schedule")
    launcher = config.launcher
    if isinstance(launcher, str):
        launcher = load_launcher(launcher, f"{path}: launcher", file.parent)
    data, training = config.data, config.training
    override = os.environ.get("CIFAR10_SOURCE")
    if override and data.name == "cifar10":
        # Another source has another checksum, and the mirrors of the old one no longer apply.
        data = msgspec.structs.replace(
            data, source=_absolute(override, Path.cwd(), "CIFAR10_SOURCE"), sha256=None, mirrors=[]
        )
    else:
        data = msgspec.structs.replace(
            data,
            source=_absolute(data.source, file.parent, f"{path}: data.source"),
            mirrors=[_absolute(mirror, file.parent, f"{path}: data.mirrors") for mirror in data.mirrors],
        )
        if data.source == OFFICIAL_URL and data.sha256 is None:
            data = msgspec.structs.replace(data, sha256=OFFICIAL_SHA256)
    if training.init_from is not None:
        where = f"{path}: training.init_from"
        training = msgspec.structs.replace(training, init_from=_absolute(training.init_from, file.parent, where))
    return msgspec.structs.replace(config, data=data, training=training, launcher=launcher)


def _is_recorded(file: Path) -> bool:
    with file.open(encoding="utf-8") as text:
        return text.read(len(_RECORDED)) == _RECORDED


def with_launcher(config: Config, launcher: str, where: str) -> Config:
    """`config` with another launcher: the name of a YAML file, the words of a command, or `none`."""
    if launcher == "none":
        words = []
    elif launcher.endswith((".yaml", ".yml")):
        words = load_launcher(launcher, where, Path.cwd())
    else:
        try:
            words = shlex.split(launcher)
        except ValueError as error:
            raise ConfigError(f"{where}: found {launcher!r}: {error}") from None
    return msgspec.structs.replace(config, launcher=words)


def load_launcher(name: str, where: str, folder: Path) -> list[str]:
    """The list under `launcher` in the file of this name: in `folder`, here, or the ready-made one.

    Raises `ConfigError`, with `where` naming who wanted it.
    """
    ready_made = ready_made_folder() / "launchers"
    places = [folder / expanded(name, where), Path(name), ready_made / name.rpartition("config/launchers/")[2]]
    file = next((place for place in places if os.path.isfile(place)), None)
    if file is None:
        known = ", ".join(f"config/launchers/{found.name}" for found in sorted(ready_made.glob("*.yaml")))
        raise ConfigError(
            f"{where}: found {name!r}, which is not a file; give a list of arguments such as [srun, --gres=gpu:1], "
            f"a YAML file that holds one, or one of the ready-made {known}"
        )
    value = parse_yaml(file, name)
    words = value.get("launcher")
    if set(value) != {"launcher"} or not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{name}: found {_shown(value)}, expected the one key launcher with a list of arguments")
    return words


def ready_made_folder() -> Path:
    """The folder of the ready-made YAML files: inside the installed package, or `config/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "ready_made"
    return installed if installed.is_dir() else package.parent / "config"


def find(path: str | os.PathLike[str]) -> Path:
    """The file that `path` means: itself, or the ready-made file of that name. Raises `ConfigError`."""
    given = Path(path)
    if os.path.exists(given):  # not pathlib's, which raises for a name that is too long
        return given.resolve()
    if not given.is_absolute() and given.parent.as_posix() in (".", "config"):
        ready_made = ready_made_folder() / given.name
        if os.path.isfile(ready_made):
            return ready_made
    known = ", ".join(f"config/{file.name}" for file in sorted(ready_made_folder().glob("*.yaml")))
    raise ConfigError(f"{path}: no such configuration file; give a path, or one of the ready-made {known}")


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested dicts and lists, giving `("training.schedule.kind", "step")`, `("conv_arch[0][1]", 64)`."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from flatten(item, f"{prefix}[{index}]")
    else:
        yield prefix, value


def differences(old: Any, new: Any) -> list[str]:
    """What changed between two nested values, one `key: old -> new` for each leaf."""
    before, after = dict(flatten(old)), dict(flatten(new))
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in after:
            lines.append(f"{key}: {_shown(before[key])} -> (gone)")
        elif key not in before:
            lines.append(f"{key}: (none) -> {_shown(after[key])}")
        elif before[key] != after[key]:
            lines.append(f"{key}: {_shown(before[key])} -> {_shown(after[key])}")
    return lines


# --- YAML ---------------------------------------------------------------------------------------------------------


_INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_INTEGER = re.compile(r"[-+]?(0|[1-9](_?[0-9]){0,17}|0x[0-9a-fA-F]{1,15})\Z")
_REAL = re.compile(
    r"([-+]?([0-9](_?[0-9])*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?|[-+]?[0-9]+[eE][-+]?[0-9]{1,3}"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that refuses duplicate keys and reads numbers as people do.

    PyYAML follows YAML 1.1, where `1e-3` is text (yaml/pyyaml issue 173), `010` is 8, `1:30` is 90, and a day is no
    text. Here numbers are those of YAML 1.2, with `_` between digits; all else, such as a number too long, is text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012, PyYAML's own
        first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT, _DATE)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _number(loader: Any, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    if _INTEGER.match(text):
        return int(text.replace("_", ""), 0)
    if _REAL.match(text):
        return loader.construct_yaml_float(node)
    raise yaml.constructor.ConstructorError(None, None, f"{text[:30]!r} is no number", node.start_mark)


_Loader.add_implicit_resolver(_INT, _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT, _REAL, list("-+.0123456789"))
_Loader.add_constructor(_INT, _number)
_Loader.add_constructor(_FLOAT, _number)


def _mapping_without_duplicates(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def parse_yaml(file: Path, shown: str) -> Any:
    """The plain value of a YAML file; raises `ConfigError` (named `shown`) when it is not readable YAML."""
    try:
        if file.stat().st_size > 1_000_000:
            raise ConfigError(f"{shown}: {file.stat().st_size} bytes is no configuration file; is it the right path?")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{shown}: cannot read it: {error.strerror}") from None
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{shown}: not valid YAML{at}: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML meets a wrong value behind a tag, such as `!!bool 5`, with whatever its own code stumbles over.
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"{shown}: not valid YAML ({found})") from None
    if not isinstance(value, dict):
        found = "an empty file" if value is None else f"a {type(value).__name__}"
        raise ConfigError(f"{shown}: found {found}, expected the keys {', '.join(Config.__struct_fields__)}")
    return value


# --- messages -----------------------------------------------------------------------------------------------------


def _explain(message: str, value: Any) -> str:
    """Turn msgspec's message into: key path, what was found, what is allowed."""
    problem, _, pointer = message.partition(" - at `$")
    path = pointer.rstrip("`").lstrip(".")
    unknown = re.match(r"Object contains unknown field `(.*)`", problem)
    if unknown:
        old = _join(path, unknown[1])
        if old in RENAMED:
            return f"{old}: is now called {RENAMED[old].rpartition('.')[2]}"
        allowed = _fields_at(path)
        close = difflib.get_close_matches(unknown[1], allowed, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        key = _join(path, unknown[1] if len(unknown[1]) <= 60 else f"{unknown[1][:57]}...")
        return f"unknown key {key}{hint}; allowed here: {', '.join(allowed)}"
    missing = re.match(r"Object missing required field `(.*)`", problem)
    if missing:
        return f"missing key {_join(path, missing[1])}"
    problem = re.sub(r"Expected `(object)`", "Expected a mapping of keys", problem)
    problem = re.sub(r"^Expected `(\w+)(?: \| null)?`, got `\w+`", r"Expected \1", problem).replace("`", "")
    problem = re.sub(r"^Invalid enum value .*", lambda _: "expected one of " + _choices_at(path), problem)
    problem = problem.replace("Expected", "expected", 1)
    problem = re.sub(r"array of at least length (\d+)", r"a list of at least \1", problem)
    problem = re.sub(r"expected array of length 2.*|expected array\b", "expected a list", problem)
    if path.startswith("architecture.conv_arch"):
        problem += " (conv_arch is a list of [convolutions, channels])"
    found = _value_at(value, path)
    if isinstance(found, str) and re.fullmatch(r"[-+]?0[0-9]+", found):
        problem += " without leading zeros"
    if path.startswith("launcher["):
        problem += "; each argument is text: put it in quotes"
    elif path == "launcher":
        problem = "expected a list of arguments, or the name of a file that holds one"
    return f"{path or 'top level'}: found {_shown(found)}, {problem}"


def _check_meaning(config: Config, value: Any, where: str) -> None:
    """Refuse what the types allow but no network or training can be."""
    for key, leaf in flatten(to_dict(config)):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise ConfigError(f"{where}: {key}: found {leaf}, expected a finite number")
        if isinstance(leaf, str) and re.search("[\ud800-\udfff]", leaf):
            raise ConfigError(f"{where}: {key}: found {leaf!a}, which cannot be written as UTF-8")
    data, init_from = config.data, config.training.init_from
    places = {"data": {"source": data.source, "mirrors": data.mirrors}, "training": {"init_from": init_from}}
    for key, location in flatten(places):
        if isinstance(location, str) and re.search(r"[\x00-\x1f\x7f]", location):
            raise ConfigError(f"{where}: {key}: found {_shown(location)}, an address or path has no control characters")
    architecture, training = config.architecture, config.training
    pools = len(architecture.conv_arch)
    allowed = IMAGE_SIZE.bit_length() - 1
    if pools > allowed:
        raise ConfigError(
            f"{where}: architecture.conv_arch: found {pools} blocks, each halving the image; "
            f"{IMAGE_SIZE}x{IMAGE_SIZE} pixels allow at most {allowed}"
        )
    if training.optimizer != "sgd" and training.momentum == 0:
        raise ConfigError(f"{where}: training.momentum: found 0, but optimizer {training.optimizer} needs momentum > 0")
    if training.optimizer == "muon" and not architecture.batch_norm:
        raise ConfigError(
            f"{where}: training.optimizer: found muon, which keeps the kernels at a fixed size and so needs "
            "architecture.batch_norm: true; use nag or sgd without"
        )
    schedule = training.schedule
    if schedule.kind == "step" and not schedule.milestones:
        raise ConfigError(f"{where}: training.schedule.milestones: missing; kind step needs the epochs of its steps")
    if schedule.milestones and schedule.kind != "step":
        raise ConfigError(f"{where}: training.schedule.milestones: only kind step has them, found kind {schedule.kind}")
    if sorted(set(schedule.milestones)) != schedule.milestones:
        raise ConfigError(f"{where}: training.schedule.milestones: found {schedule.milestones}, must be ascending")
    if config.data.name == "sample" and not config.data.is_sample:
        given = isinstance(value, dict) and "source" in (value.get("data") or {})
        found = address.shown(config.data.source) if given else "nothing"
        raise ConfigError(f"{where}: data.source: found {found}, but data.name sample is the one with source bundled")
    if config.data.is_sample and config.data.name != "sample":
        raise ConfigError(f"{where}: data.name: found {config.data.name}, but source bundled is named sample")
    if isinstance(config.launcher, list) and any("\0" in word or not word for word in config.launcher):
        raise ConfigError(f"{where}: launcher: found {_shown(config.launcher)}, an argument cannot be empty")
    devices = config.device.partition(":")[2].split(",")
    if len(set(devices)) != len(devices):
        raise ConfigError(f"{where}: device: found {config.device}, the same device twice")


#: Keys of the schedule and the kinds that heed them.
_SCHEDULE_KEYS = {
    "warmup_epochs": ("constant", "step", "cosine"),
    "milestones": ("step",),
    "factor": ("step",),
    "peak": ("triangle",),
    "final": ("cosine", "triangle"),
}


def _check_schedule(training: Training, where: str) -> None:
    """Refuse a schedule of which something has no effect, or an effect that nobody can want.

    Runs that were trained with such a one before are still read. Values that are the default may be spelled out.
    """
    schedule, epochs = training.schedule, training.epochs
    for key, kinds in _SCHEDULE_KEYS.items():
        found = getattr(schedule, key)
        if schedule.kind not in kinds and found != getattr(Schedule(), key):
            why = "rises to its peak by itself" if key == "warmup_epochs" else "does not heed it"
            raise ConfigError(
                f"{where}.{key}: found {_shown(found)}, but kind {schedule.kind} {why}: leave it out, or use kind "
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


_STRUCTS: dict[str, type[Struct]] = {
    "": Config,
    "data": Data,
    "architecture": Architecture,
    "training": Training,
    "training.schedule": Schedule,
    "training.augmentation": Augmentation,
    "evaluation": Evaluation,
    "retrain": Retraining,
    "distributed": Distributed,
}


def _fields_at(path: str) -> list[str]:
    return list(_STRUCTS[path].__struct_fields__)


def _choices_at(path: str) -> str:
    parent, _, field = path.rpartition(".")
    hint = _STRUCTS[re.sub(r"\[.*", "", parent)].__annotations__[re.sub(r"\[.*", "", field)]
    return ", ".join(re.findall(r"\w+", str(hint).partition("Literal[")[2]))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _value_at(value: Any, path: str) -> Any:
    for step in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(step)] if isinstance(value, (list, tuple)) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = ""
    for piece in json.JSONEncoder(default=str).iterencode(value):  # aliases can make a small file a huge value
        text += re.sub(r"\w+://[^\"]*", lambda found: address.shown(found[0]), piece)
        if len(text) > 60:
            return text[:57] + "..."
    return text


def _absolute(location: str, folder: Path, where: str) -> str:
    if location == "bundled" or "://" in location:
        return location
    found = os.path.normpath(folder / expanded(location, where))
    check_path(found, where)
    return found
