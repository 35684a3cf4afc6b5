"""The configuration: what is accepted, what is refused with which message, and the fingerprint of an architecture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from pipeline.config import (
    differences,
    fingerprint,
    from_dict,
    from_record,
    load,
    to_dict,
    to_record,
)
from pipeline.errors import ConfigError

TEXT = """\
data: {name: mini, source: mini.tar.gz}
architecture: {name: tiny, conv_arch: [[1, 4], [2, 8]], batch_norm: true, dense: [16]}
training: {epochs: 2, learning_rate: 0.01, schedule: {kind: step, milestones: [1]}}
device: cpu
"""

#: A few hundred characters whose aliases expand to a list of 10**11 items.
BOMB = (
    f"[&a0 [{', '.join('x' * 10)}]" + "".join(f", &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)) + "]"
)

#: A thousand keys merged into one mapping after another.
MERGED = (
    "a: &a {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}\n" + "".join(f"b{n}: {{<<: *a}}\n" for n in range(20))
)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def changed(old, new):
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


def refused(path):
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs:", "epoch:", "unknown key training.epoch (did you mean epochs?); allowed: epochs, batch_size, opt"),
        ("epochs: 2", "epochs: 2, lr_mult: {norms: 64}", "unknown key training.lr_mult.norms (did you mean norm?)"),
        ("true", "{sacle: 1}", "unknown key architecture.batch_norm.sacle (did you mean scale?); allowed: scale, mom"),
        ("epochs:", '"x` - at `$.epochs":', "unknown key training.x` - at `$.epochs; allowed: epochs"),
        ("training:", '" - at `$.x":', "unknown key  - at `$.x; allowed: data"),
        ("kind: step", "sort: step", "unknown key training.schedule.sort; allowed: kind, warmup_epochs"),
        ("epochs: 2, ", "", "missing key training.epochs"),
        ("device: cpu", "device: cpu\ndevice: gpu", "not valid YAML at line 5, column 1: duplicate key 'device'"),
        ("epochs: 2", "epochs: two", 'training.epochs: found "two", expected an integer'),
        ("epochs: 2", "epochs: 0", "training.epochs: found 0, expected an integer >= 1"),
        ("0.01", "-1", "training.learning_rate: found -1, expected a number > 0"),
        ("0.01", "1e39", "training.learning_rate: found 1e+39, expected a number <= 1e+18"),
        ("0.01", ".inf", "training.learning_rate: found Infinity, expected a number <= 1e+18"),
        ("0.01", "fast", 'training.learning_rate: found "fast", expected a number'),
        ("batch_norm: true", "batch_norm: maybe", 'architecture.batch_norm: found "maybe", expected true or false'),
        ("kind: step", "kind: steps", "expected one of constant, step, cosine, triangle"),
        ("milestones: [1]", "milestones: [2, 1]", "training.schedule.milestones: found [2, 1], must be ascending"),
        ("{kind: step, milestones: [1]}", "{kind: step}", "training.schedule.milestones: missing"),
        ("[2, 8]", "[2]", "architecture.conv_arch[1]: found [2], expected a list"),
        ("[2, 8]", "[0, 8]", "architecture.conv_arch[1][0]: found 0, expected an integer >= 1"),
        ("[[1, 4], [2, 8]]", "[]", "architecture.conv_arch: found [], expected a list of length >= 1"),
        ("[[1, 4], [2, 8]]", str([[1, 4]] * 6), "found 6 blocks, each halving the image; 32x32 pixels allow at most 5"),
        ("device: cpu", "device: tpu", 'device: found "tpu", expected auto, cpu, gpu, gpu:0 or gpu:0,1'),
        ("device: cpu", "retrain: week", 'retrain: found "week"; write retrain: {every: week}'),
        ("device: cpu", "device: 'gpu:0,0'", "device: found gpu:0,0, the same device twice"),
        ("name: tiny", "name: ../tiny", 'architecture.name: found "../tiny"'),
        ("name: mini", "name: sample", "data.source: found"),
        ("source: mini.tar.gz", "source: bundled", "data.name: found mini, but source bundled needs name: sample"),
        ("epochs: 2", "epochs: 2, momentum: 0, optimizer: nag", "training.momentum: found 0, but optimizer nag"),
        ("device: cpu", "evaluation: {tta: 3}", "evaluation.tta: found 3, expected one of 1, 2, 6"),
        ("device: cpu", "evaluation: {views: 2}", "evaluation.views: is now called tta"),
        ("epochs: 2", "epochs: 2, momentum: 1", "training.momentum: found 1, expected a number < 1"),
        ("mini.tar.gz", "mini.tar.gz, sha256: 123", "data.sha256: found 123, expected text"),
        ("{epochs: 2", "{epochs: 2}}", "not valid YAML at line 3"),
        ("[16]", "[*other]", "not valid YAML at line 2"),
        ("epochs: 2", "epochs: 010", 'training.epochs: found "010", expected an integer without leading zeros'),
        ("0.01", "1:30", 'training.learning_rate: found "1:30", expected a number'),
        ("epochs: 2", f"epochs: 2, seed: 0x{'f' * 4000}", 'training.seed: found "0xfff'),
        ("epochs: 2", f"epochs: {':'.join(['1'] * 20_000)}", 'training.epochs: found "1:1:1'),
        ("epochs: 2", f"epochs: !!int 0x{'f' * 5000}", "is not a number"),
        ("0.01", "!!float 1:30", "not valid YAML at line 3, column 38: '1:30' is not a number"),
        ("batch_norm: true", "batch_norm: !!bool 5", "not valid YAML (KeyError: '5')"),
        ("batch_norm: true", "batch_norm: !!timestamp x", "not valid YAML (AttributeError"),
        ("name: tiny", 'name: "tiny\\n"', 'architecture.name: found "tiny\\n"'),
        ("mini.tar.gz", f'mini.tar.gz, sha256: "{"0a" * 32}\\n"', "data.sha256: found"),
        ("device: cpu", 'device: "cpu\\n"', 'device: found "cpu\\n"'),
        ("mini.tar.gz", '"mini\\0.tar.gz"', "data.source: found "),
        ("mini.tar.gz", '"mini.tar.gz", mirrors: [a, "b\\nc"]', "data.mirrors[1]: found "),
        ("epochs: 2", 'epochs: 2, init_from: "a\\0"', "training.init_from: found "),
        (
            "source: mini.tar.gz",
            "mirrors: https://me:hush@host/x",
            'data.mirrors: found "https://host/x", expected a l',
        ),
        (
            "name: mini, source: mini.tar.gz",
            "name: sample, source: 's3://k:y@b/x?y'",
            "data.source: found s3://b/x, but",
        ),
        ("device: cpu", f"launcher: {'a' * 300}.yaml", "which is not a file"),
        ("device: cpu", "1: cpu", "not valid YAML at line 4, column 1: a key must be a plain word"),
    ],
)
def test_an_error_names_the_key_what_was_found_and_what_is_allowed(write, old, new, message):
    assert message in refused(write(changed(old, new)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file, expected the keys data, architecture, training"),
        (b"- 1\n- 2\n", "found a list, expected the keys data"),
        (b"data: \xff\n", "byte 6 is not UTF-8 text"),
        (b"#" * 1_000_001, "1000001 bytes is too large for a configuration file"),
        (TEXT.replace("cpu", "[" * 50_000).encode(), "not valid YAML"),
        (MERGED.encode(), "more than 10,000 keys, including merged ones"),
        (TEXT.replace("cpu", BOMB).encode(), 'device: found [["x", "x", "x", "x", "x", "x", "x", "x", "x", "x"], [['),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert message in refused(path)


def test_a_folder_a_pipe_or_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero")):
        assert "found a folder, a pipe or a device; give the path of a YAML file" in refused(path)


def test_a_missing_file_names_the_ready_made_ones():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such configuration file; .*config/vgg11\.yaml"):
        load("nowhere.yaml")


@pytest.mark.parametrize("spelling", ["1e-3", "1E-3", "0.001", "1.e-3", "+1e-3", ".1e-2"])
def test_every_spelling_of_a_small_number_is_a_number(write, spelling):
    assert load(write(changed("0.01", spelling))).training.learning_rate == 0.001


@pytest.mark.parametrize(("spelling", "number"), [("1_000", 1000), ("0x10", 16), ("+7", 7), ("0", 0)])
def test_every_spelling_of_an_integer_is_an_integer(write, spelling, number):
    assert load(write(changed("epochs: 2", f"epochs: 2, seed: {spelling}"))).training.seed == number


@pytest.mark.parametrize("name", ["010", "2026-11-26", "1e", "0x"])
def test_anything_but_a_number_is_text(write, name):
    assert load(write(changed("tiny", name))).architecture.name == name


def test_an_argument_of_a_launcher_may_look_like_a_time(write):
    assert load(write(TEXT + "launcher: [srun, --time, 1:30:00]")).launcher == ["srun", "--time", "1:30:00"]


@pytest.mark.parametrize("name", ["a" * 300, "config/" + "a" * 300, "/" + "a" * 300, "~no-such-user/x"])
def test_an_impossible_file_name_is_a_missing_file(name):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(name)


def test_the_record_of_a_configuration_contains_no_secret(write):
    addresses = "https://me:hush@host/x?token=hush, mirrors: ['https://me:hu/sh@host/y', z]"
    config = load(write(changed("mini.tar.gz", addresses) + "launcher: [env, TOKEN=hush, srun]"))
    record = to_record(config)
    assert record["data"]["source"] == "https://host/x"
    assert record["data"]["mirrors"][0] == "https://…@host/y"
    assert "hush" not in str(record)
    assert "hush" in str(to_dict(config)), "the configuration that runs still has it"
    assert {**to_dict(config), "data": None, "launcher": []} == {**record, "data": None}


def test_yaml_anchors_and_merges_work(write):
    text = TEXT.replace("[[1, 4], [2, 8]]", "[&block [1, 4], *block]")
    assert load(write(text)).architecture.conv_arch == [(1, 4), (1, 4)]


def test_paths_in_the_file_are_relative_to_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = load(write(changed("epochs: 2", "epochs: 2, init_from: old.params")))
    assert config.data.source == str(tmp_path / "mini.tar.gz")
    assert config.training.init_from == str(tmp_path / "old.params")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_environment_replaces_the_source_and_its_checksum(write, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFAR10_SOURCE", "another.tar.gz")
    monkeypatch.setenv(f"{name.upper()}_SOURCE", "here.tar.gz")
    text = changed("{name: mini, source: mini.tar.gz}", f"{{name: {name}, sha256: {'0a' * 32}, mirrors: [a, b]}}")
    data = load(write(text)).data
    assert (data.source, data.sha256, data.mirrors) == (str(tmp_path / "here.tar.gz"), None, [])


def test_a_file_address_becomes_a_path(write, monkeypatch):
    data = "{name: cifar10, source: 'file:///data/my%20parts/', mirrors: ['FILE://localhost/data/b.tar']}"
    text = changed("{name: mini, source: mini.tar.gz}", data)
    monkeypatch.delenv("CIFAR10_SOURCE", raising=False)
    assert (load(write(text)).data.source, load(write(text)).data.mirrors) == ("/data/my parts", ["/data/b.tar"])
    monkeypatch.setenv("CIFAR10_SOURCE", "file:///data/other")
    assert load(write(text)).data.source == "/data/other"
    for source in ("'file:///%00'", "''"):  # without a name it would be the configuration's own folder
        with pytest.raises(ConfigError, match=r"data\.source: found .*, expected an address or path, in one line"):
            load(write(changed("mini.tar.gz", source)))


def test_the_environment_does_not_affect_other_data_sets(write, monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR10_SOURCE", "/somewhere/else.tar.gz")
    assert load(write(TEXT)).data.source == str(tmp_path / "mini.tar.gz")
    assert load("config/quickstart.yaml").data.source == "bundled"


def test_the_environment_cannot_replace_official_data_by_the_sample(write, monkeypatch):
    monkeypatch.setenv("CIFAR10_SOURCE", "bundled")
    with pytest.raises(ConfigError, match=r"CIFAR10_SOURCE: .*source bundled needs name: sample"):
        load(write(changed("{name: mini, source: mini.tar.gz}", "{}")))


def test_the_official_archive_comes_with_its_checksum(write, monkeypatch):
    monkeypatch.delenv("CIFAR10_SOURCE", raising=False)
    data = load(write(changed("{name: mini, source: mini.tar.gz}", "{}"))).data
    assert data.source == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert data.sha256 == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    data = load(write(changed("{name: mini, source: mini.tar.gz}", "{name: cifar100}"))).data
    assert data.source == "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    assert data.sha256 == "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"


def test_the_fingerprint_depends_on_values_alone(write):
    plain = load(write(TEXT)).architecture
    value = yaml.safe_load(TEXT)
    backwards = {key: {k: value[key][k] for k in reversed(value[key])} for key in ("training", "data", "architecture")}
    spelled_out = write(yaml.safe_dump({**backwards, "device": "auto"}, sort_keys=False))
    assert fingerprint(load(spelled_out).architecture) == fingerprint(plain)
    defaults = load(write(changed("dense: [16]", "dense: [16], dropout: 0.5")))
    assert fingerprint(defaults.architecture) == fingerprint(plain), "a default that is spelled out"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tiny", "tinier"),
        ("[1, 4]", "[1, 5]"),
        ("[1, 4]", "[2, 4]"),
        ("batch_norm: true", "batch_norm: false"),
        ("dense: [16]", "dense: []"),
        ("dense: [16]", "dense: [16], dropout: 0.4"),
        ("dense: [16]", "dense: [16], classes: 11"),
        ("dense: [16]", "dense: [16], activation: gelu"),
        ("dense: [16]", "dense: [16], stem: 32"),
        ("dense: [16]", "dense: [16], pool: first"),
        ("dense: [16]", "dense: [16], global_pool: max"),
        ("batch_norm: true", "batch_norm: {scale: false}"),
        ("batch_norm: true", "batch_norm: {momentum: 0.6}"),
    ],
)
def test_every_value_of_the_architecture_changes_the_fingerprint(write, old, new):
    text = TEXT.replace("training: {", "training: {initializer: whitening, ")
    assert load(write(text.replace(old, new))).fingerprint != load(write(text)).fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dense: [16]", "dense: [16], activation: relu, stem: 0, pool: last, global_pool: none"),
        ("batch_norm: true", "batch_norm: {}"),
        ("batch_norm: true", "batch_norm: {scale: true, momentum: 0.9}"),
    ],
)
def test_keys_added_later_do_not_change_the_fingerprint_at_their_defaults(write, old, new):
    assert load(write(changed(old, new))).fingerprint == load(write(TEXT)).fingerprint


@pytest.mark.parametrize(
    ("data", "classes"),
    [("{}", 10), ("{name: cifar10}", 10), ("{name: sample, source: bundled}", 10), ("{name: cifar100}", 100)],
)
def test_the_number_of_classes_follows_from_the_name_of_the_data_set(write, data, classes):
    text = changed("{name: mini, source: mini.tar.gz}", data)
    config = load(write(text))
    assert config.architecture.classes == classes
    assert load(write(text.replace("dense: [16]", f"dense: [16], classes: {classes}"))) == config
    wrong = write(text.replace("dense: [16]", "dense: [16], classes: 4"))
    with pytest.raises(ConfigError, match=rf"found 4, but \w+ has {classes} classes; set it to {classes}"):
        load(wrong)


def test_the_fingerprint_ignores_everything_but_the_architecture(write):
    before = load(write(TEXT)).fingerprint
    for old, new in (("epochs: 2", "epochs: 9"), ("device: cpu", "device: gpu"), ("name: mini", "name: other")):
        assert load(write(changed(old, new))).fingerprint == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quickstart", "4d872bc8"),
        ("vgg11", "6ca079b8"),
        ("vgg11-origin", "1921a246"),
        ("vgg11-fast", "9d7e5f93"),
        ("vgg11-bn", "5df82474"),
        ("vgg13-bn", "ae1a06df"),
        ("vgg16-bn", "fa7cd97b"),
        ("vgg19-bn", "af9a24db"),
        ("vgg8-xs", "125de536"),
        ("vgg8-s", "449b6a22"),
        ("vgg8-m", "ebdc43a9"),
        ("vgg8", "0fbb536a"),
        ("vgg8-l", "e7f42ee4"),
    ],
)
def test_the_fingerprints_of_the_ready_made_networks_never_change(name, expected):
    # A change here retrains every run of every user: only ever raise ARCHITECTURE_KEY_VERSION on purpose.
    assert load(f"config/{name}.yaml").fingerprint[:8] == expected


def test_differences_name_the_leaf_and_both_values(write):
    before = to_dict(load(write(TEXT)))
    after = to_dict(load(write(TEXT.replace("[2, 8]", "[2, 9]").replace("0.01", "0.1"))))
    assert differences(before, after) == ["architecture.conv_arch[1][1]: 8 -> 9", "training.learning_rate: 0.01 -> 0.1"]
    assert differences({"a": [1]}, {"a": [1, 2], "b": None}) == ["a[1]: (none) -> 2", "b: (none) -> nothing"]
    assert differences({"a": [1, 2]}, {"a": [1]}) == ["a[1]: 2 -> (gone)"]
    assert differences({"a\n\x1b[31m": 1, "b": 2}, {"b": 2}) == ["a ?[31m: 1 -> (gone)"], (
        "a damaged manifest's key in a terminal"
    )
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    assert differences({"a": deep}, {"a": 1}) == ["nested too deeply to be compared"]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{kind: triangle, warmup_epochs: 1}", "warmup_epochs: found 1.0, but kind triangle has its own warm-up"),
        ("{kind: cosine, peak: 0.5}", "peak: found 0.5, but kind cosine ignores it: leave it out, or use"),
        ("{kind: constant, final: 0.1}", "final: found 0.1, but kind constant ignores it: leave it out, or use"),
        ("{kind: step, milestones: [2], final: 0.1}", "final: found 0.1, but kind step ignores it"),
        ("{kind: cosine, factor: 0.5}", "factor: found 0.5, but kind cosine ignores it: leave it out, or use"),
        ("{kind: cosine, warmup_epochs: 5}", "warmup_epochs: found 5, expected less than training.epochs, 5"),
        ("{warmup_epochs: 99}", "warmup_epochs: found 99, expected less than training.epochs, 5"),
        ("{kind: step, milestones: [2, 5, 7]}", "milestones: found 5, but the training ends with epoch 5: leave"),
        ("{kind: step, milestones: [2], warmup_epochs: 2.5}", "milestones: found 2, expected more than warmup_epochs"),
    ],
)
def test_a_schedule_with_a_useless_or_senseless_key_is_refused(write, schedule, message):
    path = write(changed("epochs: 2", "epochs: 5").replace("{kind: step, milestones: [1]}", schedule))
    assert refused(path).startswith(f"training.schedule.{message}")


@pytest.mark.parametrize("schedule", ["{kind: constant}", "{kind: triangle}", "{kind: cosine, warmup_epochs: 1}"])
def test_the_configuration_recorded_by_a_training_can_be_loaded(write, schedule):
    first = load(write(changed("{kind: step, milestones: [1]}", schedule)))
    assert load(write(yaml.safe_dump(to_dict(first)))) == first


def test_a_configuration_recorded_before_keys_were_renamed_is_still_read(write):
    old = "evaluation: {views: 6}\nschedule: {every: day, keep: 2}\n"
    now = load(write(TEXT + "evaluation: {tta: 6}\nretrain: {every: day, keep: 2}\n"))
    value = {**yaml.safe_load(TEXT + old), "data": to_dict(now.data)}
    assert from_record(value) == now
    assert load(write(f"# The full configuration that tiny-0123abcd was trained with.\n{TEXT}{old}")) == now
    assert "schedule: is now called retrain" in refused(write(TEXT + "schedule: {every: day}\n"))


def test_an_older_run_with_a_schedule_refused_today_is_still_read():
    value = yaml.safe_load(changed("milestones: [1]", "milestones: [1, 9], final: 0.5"))
    assert from_dict(value).training.schedule.milestones == [1, 9]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("mine.yml", "mine.yaml"),
        ("mine", "mine.yaml"),
        ("vgg-11.yaml", "config/vgg11.yaml"),
        ("x" * 5000 + "/a.yaml", ""),
    ],
)
def test_a_similar_file_is_suggested(given, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(ConfigError) as refused:
        load(given)
    assert ("(did you mean " in str(refused.value)) == bool(meant)
    assert meant in str(refused.value)
