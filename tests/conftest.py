"""Shared fixtures: a small chain that is run once and copied by each test."""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from luigi_runs import SmallChain
from luigid_process import Luigid, luigid

# A shell's background job ignores Ctrl-C, and every command that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallChain:
    """A finished chain. Shared: do not modify."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(shared / "chain.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one pytest worker runs it for all
        first = shared / "chain"
        if not first.exists():
            result = SmallChain(first).report()
            assert result.ran == ["dataset", "train", "evaluate", "export", "report"]
    chain = SmallChain(base / "finished", first / "mini.tar.gz")
    shutil.copytree(first / "artifacts", chain.workspace)
    return chain


@pytest.fixture
def done(finished: SmallChain, tmp_path: Path) -> SmallChain:
    """A copy of the finished chain that may be modified and run again."""
    chain = SmallChain(tmp_path / "chain", finished.archive)
    chain.values = copy.deepcopy(finished.values)
    chain.configure()
    shutil.copytree(finished.workspace, chain.workspace)
    return chain


@pytest.fixture
def fresh(finished: SmallChain, tmp_path: Path) -> SmallChain:
    """A chain of which nothing has run."""
    return SmallChain(tmp_path / "chain", finished.archive)


@pytest.fixture
def prepared(finished: SmallChain, fresh: SmallChain) -> SmallChain:
    """A chain with only its data set finished."""
    shutil.copytree(finished.workspace / "datasets", fresh.workspace / "datasets")
    return fresh


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Luigid]:
    with luigid(tmp_path / "luigid") as process:
        yield process
