"""Fixtures of the cluster tests. They use the Slurm of SLURM_CONF, or start one with the script in SLURM_START."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_runs import CONFIG, Luigi, Slurm, own_slurm, weights
from luigi_runs import SmallChain


@pytest.fixture(scope="session")
def with_data(tmp_path_factory: pytest.TempPathFactory) -> SmallChain:
    """A chain with a data set and nothing else. Shared: copy it."""
    chain = SmallChain(tmp_path_factory.mktemp("cluster"), config=CONFIG)
    assert chain.luigi("DownloadCifar").rc == 0
    return chain


@pytest.fixture
def chain(with_data: SmallChain, tmp_path: Path) -> SmallChain:
    """A copy of `with_data`, to train."""
    chain = SmallChain(tmp_path / "chain", with_data.archive, CONFIG)
    shutil.copytree(with_data.workspace / "datasets", chain.workspace / "datasets")
    return chain


@pytest.fixture(scope="session")
def undisturbed(with_data: SmallChain, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights after an uninterrupted local training."""
    chain = SmallChain(tmp_path_factory.mktemp("undisturbed") / "chain", with_data.archive, CONFIG)
    shutil.copytree(with_data.workspace / "datasets", chain.workspace / "datasets")
    Luigi(chain).finish(0)
    return weights(chain)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real Slurm; skips the test if there is none."""
    if "SLURM_CONF" in os.environ:
        yield Slurm(Path(os.environ["SLURM_CONF"]).parent)
        return
    start = os.environ.get("SLURM_START")
    if not start:
        pytest.skip("no Slurm: set SLURM_CONF, or SLURM_START to a script that starts one")
    with (
        own_slurm(start, tmp_path_factory.mktemp("slurm")) as conf,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLURM_CONF", conf)
        yield Slurm(Path(conf).parent)


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """The Slurm, without jobs before and after the test."""
    cluster.wait_until_ready()
    yield cluster
    try:
        cluster.wait_until_empty()
    finally:
        for line in cluster.squeue():
            cluster.cancel(line.split()[0])
