"""One training on two nodes of a real Slurm: roles and addresses from Slurm's environment."""

from __future__ import annotations

import os
import signal

import pytest
from cluster_runs import CONFIG, Luigi, Slurm, eventually, weights
from luigi_runs import SmallChain
from test_distributed import checkpoints, new_checkpoint, roles, start

SRUN = ["srun", "--nodes=2", "--ntasks=2"]


@pytest.fixture(scope="session")
def undisturbed_pair(with_data: SmallChain, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights that two workers reach in one go, without any launcher."""
    chain = SmallChain(tmp_path_factory.mktemp("pair") / "chain", with_data.archive, CONFIG)
    chain.configure(distributed={"workers": 2})
    luigi = Luigi(chain)
    assert luigi.wait() == 0, luigi.log
    return weights(chain)


@pytest.fixture
def pair(chain: SmallChain, slurm: Slurm) -> SmallChain:
    """A chain that trains with two workers on two nodes."""
    chain.configure(distributed={"workers": 2}, launcher=SRUN, training__checkpoint_seconds=0.05)
    return chain


def test_two_nodes_reach_the_weights_of_two_processes_on_one(pair: SmallChain, undisturbed_pair: str) -> None:
    luigi = start(pair)
    assert luigi.wait() == 0, luigi.log
    assert pair.manifest("train")["details"]["workers"] == 2
    assert weights(pair) == undisturbed_pair


def test_a_dying_worker_and_a_cancelled_job_leave_nobody_and_the_training_goes_on_exactly(
    pair: SmallChain, slurm: Slurm, undisturbed_pair: str
) -> None:
    luigi = start(pair)
    new_checkpoint(pair, luigi, [])
    os.kill(roles(pair)["worker 1"], signal.SIGKILL)
    assert luigi.wait() == 30, luigi.log
    assert "distributed training: worker 1 (process" in luigi.log
    assert "died of SIGKILL" in luigi.log
    assert "Traceback" not in luigi.log
    eventually(lambda: not roles(pair), "nobody is left", limit=60)

    luigi = start(pair)
    new_checkpoint(pair, luigi, checkpoints(pair))
    slurm.cancel(luigi.says(r"\(Slurm job (\d+)\)")[1])
    assert luigi.wait() == 30, luigi.log
    assert "checkpoint written at epoch" in luigi.log
    eventually(lambda: not roles(pair), "nobody is left", limit=60)

    luigi = start(pair)
    assert luigi.wait() == 0, luigi.log
    assert pair.manifest("train")["details"]["resumed"] == 2
    assert weights(pair) == undisturbed_pair


def test_a_wrong_number_of_tasks_is_one_line(pair: SmallChain) -> None:
    pair.configure(launcher=["srun", "--ntasks=3"])
    luigi = start(pair)
    assert luigi.wait() == 30
    assert "distributed.workers: found 2, but the launcher started 3 tasks: give srun --ntasks=2" in luigi.log
    assert "Traceback" not in luigi.log
