"""The wheel, installed where no checkout is in reach, and run from an empty folder."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from luigi_runs import CHECKOUT, CONFIG, LIMIT, clean_environment, run, small_archive

from pipeline.files import read_json

#: Longer than the others: pip may have to download the build backend.
INSTALLING = 2 * LIMIT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(CHECKOUT)]
    built = run(command, folder, outside(), INSTALLING)
    if built.rc and "hatchling" in built.text and ("No matching distribution" in built.text or "onnect" in built.text):
        pytest.skip("the build backend hatchling cannot be had: no package registry in reach")
    assert built.rc == 0, built.text
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh virtual environment's `bin` with the wheel in it; everything else comes from this environment."""
    folder = tmp_path_factory.mktemp("venv")
    made = run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder, outside(), INSTALLING)
    assert made.rc == 0, made.text
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps"]
    done = run([*pip, "--no-index", str(wheel)], folder, outside(), INSTALLING)
    assert done.rc == 0, done.text
    (site / "everything_else.pth").write_text("\n".join(other_packages()) + "\n")
    # A console script of its own, as pip makes it when Luigi is installed into the same environment.
    luigi = folder / "bin" / "luigi"
    luigi.write_text(
        f"#!{folder}/bin/python\nimport sys\nfrom luigi.cmdline import luigi_run\nluigi_run(sys.argv[1:])\n"
    )
    luigi.chmod(0o755)
    return folder / "bin"


def outside() -> dict[str, str]:
    environment = clean_environment()
    del environment["PYTHONPATH"]
    return environment


def other_packages() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def test_the_wheel_holds_the_packages_and_every_yaml_file_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert rooms == {"pipeline", "tasks", "luigi_vgg.py"}
    ready_made = {Path(name).name for name in names if name.startswith("pipeline/ready_made/")}
    assert ready_made >= {file.name for file in (CHECKOUT / "config").iterdir() if file.is_file()}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    templates = {str(file.relative_to(CHECKOUT)) for file in (CHECKOUT / "pipeline").glob("*/templates/*")}
    assert templates
    assert templates <= set(names)


def test_the_whole_chain_runs_from_an_empty_folder(installed, tmp_path):
    small_archive(tmp_path / "mini.tar.gz")
    config = {"data": {"name": "mini", "source": "mini.tar.gz"}, **CONFIG}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [str(installed / "luigi"), "--module", "tasks", "Report", "--config", "../tiny.yaml", "--local-scheduler"]
    result = run(command, empty, outside())
    assert result.rc == 0, result.text
    (report,) = (empty / "artifacts").glob("runs/*/*/report/report.json")
    assert 0 <= read_json(report)["evaluation"]["accuracy"] <= 1
    assert [path.name for path in empty.iterdir()] == ["artifacts"]
    where = run([str(installed / "python"), "-c", "import pipeline; print(pipeline.__file__)"], empty, outside())
    assert where.output.startswith(str(installed.parent)), "the checkout was used, not the wheel"


def test_the_ready_made_configurations_are_found_by_name(installed, tmp_path):
    command = [str(installed / "luigi"), "--module", "tasks", "Status", "--config", "config/quickstart.yaml"]
    result = run(command, tmp_path, outside())
    assert result.rc == 3, result.text
    assert "config/quickstart.yaml: vgg11-quick-" in result.output
    default = run([str(installed / "luigi"), "--module", "tasks", "Status"], tmp_path, outside())
    assert "config/vgg11.yaml: vgg11-" in default.output, default.text


def test_the_predict_command_is_there(installed, tmp_path):
    result = run([str(installed / "vgg-predict"), "--help"], tmp_path, outside())
    assert result.rc == 0, result.text
    assert "--model" in result.output
