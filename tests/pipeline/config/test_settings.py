"""The options that programs without Luigi read from luigi.cfg."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import predict
from pipeline.config import settings
from pipeline.errors import ConfigError


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The luigi.cfg named by LUIGI_CONFIG_PATH, for a working folder without one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", str(tmp_path / "named.cfg"))
    return tmp_path / "named.cfg"


def test_luigi_config_path_overrides_the_working_folder(cfg: Path) -> None:
    assert settings.read() == {}
    assert predict.default_model() == "artifacts"
    Path("luigi.cfg").write_text("[vgg]\ncache = /one\nworkspace = $HOME/models\n[core]\nx = 100%\n")
    cfg.write_text("[vgg]\ncache = ~/two\n")
    assert settings.read() == {"cache": "/home/me/two", "workspace": "/home/me/models"}
    assert predict.default_model() == "/home/me/models"


@pytest.mark.parametrize("content", ["no section", "[vgg]\ncache = 1\ncache = 2", "\xff"])
def test_a_file_that_cannot_be_parsed_is_named(cfg: Path, content: str) -> None:
    cfg.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=f"^{cfg}: cannot be read as Luigi's configuration: "):
        settings.read()


def test_options_are_parsed_like_luigi_does(cfg: Path) -> None:
    cfg.write_text("[vgg]\nworkspace = /data/100%%\nretry-timeout = 5\n")
    assert settings.read() == {"workspace": "/data/100%", "retry_timeout": "5"}
    cfg.write_text("[vgg]\nworkspace = /data/100%\n")
    with pytest.raises(ConfigError, match=r"^luigi.cfg: \[vgg\] workspace: a % must be written %%$"):
        settings.read()


def test_an_invalid_number_is_named(cfg: Path) -> None:
    cfg.write_text("[vgg]\nretry_timeout = long\n")
    with pytest.raises(ConfigError, match=r"\[vgg\] retry_timeout: found long, expected a number of seconds"):
        settings.seconds(settings.read(), "retry_timeout", 60)
    assert settings.seconds(settings.read(), "other_seconds", 90) == 90


def test_an_option_under_its_old_name_is_refused_with_the_new_one(cfg: Path) -> None:
    cfg.write_text("[vgg]\npatience_seconds = 60\n")
    with pytest.raises(ConfigError, match=r"^luigi.cfg: \[vgg\] patience_seconds is now called retry_timeout"):
        settings.read()
