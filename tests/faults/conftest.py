"""A data set, a finished chain and the weights of undisturbed trainings, each made once. Tests get copies."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_runs import Place, copy_of, write_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("faults-source") / "mini.tar.gz")


@pytest.fixture(scope="session")
def data_only(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace with only the data set. Do not modify: copy it."""
    place = Place(tmp_path_factory.mktemp("faults-data"), archive)
    place.run("DownloadCifar")
    return place


@pytest.fixture(scope="session")
def whole_chain(data_only: Place, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace with a finished chain. Do not modify: copy it."""
    place = Place(tmp_path_factory.mktemp("faults-chain"), archive)
    shutil.copytree(data_only.workspace, place.workspace)
    command = place.run("Report")
    assert command.code == 0, command.output
    return place


@pytest.fixture
def place(data_only: Place, tmp_path: Path) -> Place:
    return copy_of(data_only, tmp_path / "place")


@pytest.fixture
def finished(whole_chain: Place, tmp_path: Path) -> Place:
    return copy_of(whole_chain, tmp_path / "finished")


@pytest.fixture(scope="session")
def undisturbed(data_only: Place, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`undisturbed(**training)`: the weights' digest after an uninterrupted training."""
    known: dict[str, str] = {}

    def digest(**training: Any) -> str:
        key = repr(sorted(training.items()))
        if key not in known:
            place = copy_of(data_only, tmp_path_factory.mktemp("undisturbed") / "place")
            place.configure(**training)
            command = place.run()
            assert command.code == 0, command.output
            assert place.manifest()["details"]["resumed"] == 0
            known[key] = place.digest()
        return known[key]

    return digest


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`mounted(size)`: a small in-memory file system, with `size` as for mount's tmpfs."""
    made: list[Path] = []

    def mount(size: str = "20m") -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(line, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small file system cannot be mounted here: {error}")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)
