"""Comparisons: which files the user means."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.comparison import expand
from pipeline.errors import ConfigError


def test_patterns_mean_what_they_match_and_names_of_files_that_are_there_themselves(
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
    assert expand([f"{folder}/*.yaml"]) == [f"{folder}/c.yaml", f"{folder}/c[lr=0.1].yaml"]
    with pytest.raises(ConfigError, match=r"no file matches b\[1\]\.yaml"):
        expand(["b[1].yaml"])
