"""Comparisons: which files a pattern means, and how networks are distinguished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.comparison import expand, plan, ranking
from pipeline.config import Architecture
from pipeline.errors import ConfigError
from pipeline.workspace import Workspace


def test_patterns_match_as_globs_unless_they_name_an_existing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "exp[1]"
    folder.mkdir()
    for path in (tmp_path / "a1.yaml", tmp_path / "a[1].yaml", folder / "c.yaml", folder / "c[lr=0.1].yaml"):
        path.write_text("")
    assert expand(["a*.yaml"]) == ["a1.yaml", "a[1].yaml"]
    assert expand(["a[1].yaml", "a[0-9].yaml"]) == ["a[1].yaml", "a1.yaml"]
    assert expand([f"{folder}/c.yaml"]) == [f"{folder}/c.yaml"]
    assert expand([f"{folder}/c[lr=0.1].yaml"]) == [f"{folder}/c[lr=0.1].yaml"]
    assert expand(["config/**8-s.yaml"]) == ["config/vgg8-s.yaml"]
    with pytest.raises(ConfigError, match="no file matches"):
        expand([f"{'long' * 100}*.yaml"])
    with pytest.raises(ConfigError, match=r"no file matches b\[1\]\.yaml"):
        expand(["b[1].yaml"])


def test_the_name_of_a_large_comparison_is_a_valid_folder_name(tmp_path: Path) -> None:
    compared = plan(["config/quickstart.yaml"], range(1000), Workspace(tmp_path))
    assert compared.name.startswith("1-configuration-1000-seeds-")


def test_configurations_that_test_on_other_images_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    text = Path("config/image-folder.yaml").read_text()
    for name, fraction in (("a", "0.2"), ("b", "0.25")):
        changed = text.replace("test_fraction: 0.2", f"test_fraction: {fraction}")
        (tmp_path / f"{name}.yaml").write_text(changed)
    with pytest.raises(ConfigError, match=r"b\.yaml: data\.test_fraction is 0\.25, that of .*a\.yaml is 0\.2;"):
        plan([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")], [0], Workspace(tmp_path))


def test_other_differences_between_networks_are_listed_by_key(small_architecture: Callable[..., Architecture]) -> None:
    assert ranking._other_keys(small_architecture(conv_arch=[[1, 8]], dense=[16])) == []
    keys = {"activation": "gelu", "stem": 8, "batch_norm": {"scale": False}, "dropout": 0}
    found = ranking._other_keys(small_architecture(conv_arch=[[1, 8]], dense=[], **keys))
    assert found == ["batch_norm.scale: false", "batch_norm.momentum: 0.9", "dropout: 0", "activation: gelu", "stem: 8"]
