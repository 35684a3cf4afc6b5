"""Fixtures of all tests: a finished small chain, made once, of which each test changes a copy."""

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

# A shell's background job ignores Ctrl-C, and so would every command that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallChain:
    """A chain that ran to its end. Shared: look, do not touch."""
    base = tmp_path_factory.getbasetemp()
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(together / "chain.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of pytest's workers runs it for all of them
        first = together / "chain"
        if not first.exists():
            result = SmallChain(first).report()
            assert result.ran == ["dataset", "train", "evaluate", "export", "report"]
    chain = SmallChain(base / "finished", first / "mini.tar.gz")
    shutil.copytree(first / "artifacts", chain.workspace)
    return chain


@pytest.fixture
def done(finished: SmallChain, tmp_path: Path) -> SmallChain:
    """A copy of the finished chain, to change and run again."""
    chain = SmallChain(tmp_path / "chain", finished.archive)
    chain.values = copy.deepcopy(finished.values)
    chain.configure()
    shutil.copytree(finished.workspace, chain.workspace)
    return chain


@pytest.fixture
def fresh(finished: SmallChain, tmp_path: Path) -> SmallChain:
    """A chain of which nothing ran yet."""
    return SmallChain(tmp_path / "chain", finished.archive)


@pytest.fixture
def prepared(finished: SmallChain, fresh: SmallChain) -> SmallChain:
    """A chain whose data set is there, and nothing else."""
    shutil.copytree(finished.workspace / "datasets", fresh.workspace / "datasets")
    return fresh


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Luigid]:
    """A real central scheduler."""
    with luigid(tmp_path / "luigid") as process:
        yield process
