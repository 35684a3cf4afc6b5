"""Training through `srun` on a real Slurm, on one node and on two, and what is left if something dies.

One file, so that parallel tests start one Slurm.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import CONFIG, Luigi, Slurm, checkpoints, eventually, listening, new_checkpoint, roles, start, weights
from luigi_runs import SmallChain

from pipeline.errors import StageFailed
from pipeline.process import cores, liveness, parent

SRUN = ["srun", "--job-name=vgg", "--ntasks=1", "--kill-on-bad-exit=1"]


@pytest.fixture
def job(chain: SmallChain, slurm: Slurm) -> SmallChain:
    """A chain whose training goes to Slurm."""
    chain.configure(launcher=SRUN)
    return chain


def started(chain: SmallChain, *arguments: str) -> Luigi:
    """Start the training and wait until its third epoch."""
    luigi = Luigi(chain, *arguments)
    luigi.wait_for_output("epoch 3/")
    return luigi


def running_job(luigi: Luigi) -> str:
    return luigi.wait_for_output(r"started on (\w+) \(Slurm job (\d+)\)")[2]


def resumes_to_the_same_weights(chain: SmallChain, undisturbed: str) -> None:
    """Run it again: it resumes from the checkpoint and reaches the weights of an undisturbed training."""
    again = Luigi(chain)
    assert again.finish() == 0, again.output
    again.wait_for_output(r"resumed from step-\d+")
    assert weights(chain) == undisturbed


def test_a_job_waits_for_a_node_and_reaches_the_weights_of_a_local_training(
    job: SmallChain, slurm: Slurm, undisturbed: str
) -> None:
    with slurm.occupied():
        luigi = Luigi(job)
        luigi.wait_for_output("waiting for a node")
    assert luigi.finish() == 0, luigi.output
    luigi.wait_for_output(r"started on n\d \(Slurm job \d+\)")
    luigi.wait_for_output("epoch 40/40")
    assert weights(job) == undisturbed


def test_the_node_decides_about_threads_and_the_launcher_is_no_reason_to_train_again(job: SmallChain) -> None:
    job.configure(training__epochs=1, launcher=[*SRUN, "--cpus-per-task=2"])
    luigi = Luigi(job, OMP_NUM_THREADS="")
    assert luigi.finish() == 0, luigi.output
    assert job.manifest("train")["details"]["threads"] == min(2, cores.usable_cores())
    job.configure(launcher=SRUN)
    assert job.luigi("TrainVGG").ran == []
    assert "launcher:" not in job.status()


def test_a_cancelled_job_checkpoints_and_resumes(job: SmallChain, slurm: Slurm, undisturbed: str) -> None:
    luigi = started(job)
    slurm.cancel(running_job(luigi))
    assert luigi.finish() == 30, luigi.output
    slurm.wait_until_empty()
    assert "checkpoint written at epoch" in luigi.output
    resumes_to_the_same_weights(job, undisturbed)


def test_a_queued_job_is_reported_as_waiting_and_leaves_the_queue_on_ctrl_c(job: SmallChain, slurm: Slurm) -> None:
    with slurm.occupied():
        luigi = Luigi(job)
        luigi.wait_for_output(r"waiting for a node \(srun: job \d+ queued and waiting for resources\)")
        luigi.send(signal.SIGINT)
        assert luigi.finish() == 130, luigi.output
        eventually(lambda: len(slurm.squeue()) == 1, "the job left the queue")


def test_a_queued_job_leaves_the_queue_when_luigi_is_killed(job: SmallChain, slurm: Slurm) -> None:
    with slurm.occupied():
        luigi = Luigi(job)
        luigi.wait_for_output("waiting for a node")
        luigi.kill()
        eventually(lambda: len(slurm.squeue()) == 1, "the job left the queue")


def test_ctrl_c_checkpoints_and_leaves_no_job(job: SmallChain, slurm: Slurm, undisturbed: str) -> None:
    luigi = started(job)
    luigi.send(signal.SIGINT)
    assert luigi.finish() == 130, luigi.output
    assert "checkpoint written at epoch" in luigi.output
    slurm.wait_until_empty()
    resumes_to_the_same_weights(job, undisturbed)


def test_a_killed_luigi_leaves_no_job_and_the_next_one_never_trains_beside_it(
    job: SmallChain, slurm: Slurm, undisturbed: str
) -> None:
    luigi = started(job)
    luigi.kill()
    again = Luigi(job, "--vgg-overlap", "wait")
    assert again.finish() == 0, again.output
    again.wait_for_output(r"resumed from step-\d+")
    assert weights(job) == undisturbed
    assert "not bit-reproducible" not in again.output


@pytest.mark.parametrize("depth", [1, 2], ids=["guard", "srun"])
def test_a_killed_launcher_leaves_no_job(job: SmallChain, slurm: Slurm, depth: int) -> None:
    luigi = started(job)
    process = luigi.process.pid
    for _ in range(depth):
        process = int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])
    os.kill(process, signal.SIGKILL)
    assert luigi.finish() == 30, luigi.output
    assert "killed (SIGKILL" in luigi.output
    slurm.wait_until_empty()


def test_a_job_that_slurm_refuses_is_reported_in_one_line_with_the_reason(job: SmallChain) -> None:
    job.configure(launcher=["srun", "--gres=gpu:7"])
    luigi = Luigi(job)
    assert luigi.finish() == 30
    assert "the launcher 'srun' exited with status 1 before the training started" in luigi.output
    assert "Invalid generic resource" in luigi.output
    assert "Traceback" not in luigi.output


@pytest.fixture(scope="session")
def undisturbed_pair(with_data: SmallChain, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights after an uninterrupted training with two workers, without a launcher."""
    chain = SmallChain(tmp_path_factory.mktemp("pair") / "chain", with_data.archive, CONFIG)
    chain.configure(distributed={"workers": 2})
    luigi = Luigi(chain)
    assert luigi.finish() == 0, luigi.output
    return weights(chain)


@pytest.fixture
def pair(chain: SmallChain, slurm: Slurm) -> SmallChain:
    """A chain that trains with two workers on two nodes."""
    chain.configure(
        distributed={"workers": 2}, launcher=[*SRUN, "--nodes=2", "--ntasks=2"], training__checkpoint_seconds=0.05
    )
    return chain


def test_after_a_dead_worker_or_a_cancelled_job_nothing_is_left_and_the_training_resumes_exactly(
    pair: SmallChain, slurm: Slurm, undisturbed_pair: str
) -> None:
    luigi = start(pair)
    new_checkpoint(pair, luigi, [])
    os.kill(roles(pair)["worker 1"], signal.SIGKILL)
    assert luigi.finish() == 30, luigi.output
    assert "distributed training: worker 1 (process" in luigi.output
    assert "was killed by SIGKILL" in luigi.output
    assert "Traceback" not in luigi.output
    eventually(lambda: not roles(pair), "no process is left", limit=60)

    luigi = start(pair)
    new_checkpoint(pair, luigi, checkpoints(pair))
    slurm.cancel(luigi.wait_for_output(r"\(Slurm job (\d+)\)")[1])
    assert luigi.finish() == 30, luigi.output
    assert "checkpoint written at epoch" in luigi.output
    eventually(lambda: not roles(pair), "no process is left", limit=60)

    luigi = start(pair)
    assert luigi.finish() == 0, luigi.output
    assert pair.manifest("train")["details"]["resumed"] == 2
    assert weights(pair) == undisturbed_pair


def test_garbage_on_an_open_port_ends_the_training_in_one_line_and_it_resumes_exactly(
    pair: SmallChain, undisturbed_pair: str
) -> None:
    luigi = start(pair)
    new_checkpoint(pair, luigi, [])
    ports = [int(port) for process in roles(pair).values() for port in listening(process) if port.isdecimal()]
    assert ports, "on several hosts the roles listen on the network"
    greeting = b"\xff" + bytes(8) + b"\x7f\x03" + b"\0NULL".ljust(53, b"\0")
    ready = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
    for port in ports:
        for content in (os.urandom(4096), greeting + ready + b"\0\x05wrong\x01\x03and\0\x04more", greeting):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
    assert luigi.finish() == 30, luigi.output
    assert re.search(
        r"distributed training: .* was killed by SIG\w+; the other processes were killed; run", luigi.output
    )
    assert "Traceback" not in luigi.output
    luigi = start(pair)
    assert luigi.finish() == 0, luigi.output
    assert weights(pair) == undisturbed_pair


def test_tasks_that_find_the_training_finished_do_not_fail(pair: SmallChain) -> None:
    pair.configure(training__epochs=1, distributed={"workers": 1}, launcher=[])
    assert Luigi(pair).finish() == 0
    pair.configure(distributed={"workers": 2}, launcher=[*SRUN, "--nodes=2", "--ntasks=2"])
    chain, notes = pair.chain(), []
    run = chain.run()
    assert run is not None
    # as if another host had finished it between the check and the lock
    value = parent.run_stage(
        "train", chain, log=run.log("train"), on_event=notes.append, launcher=chain.config.launcher
    )
    assert value["stage"] == "train"
    assert any("another process has finished" in event.get("message", "") for event in notes)


def test_a_wrong_number_of_tasks_is_reported_in_one_line(pair: SmallChain) -> None:
    pair.configure(launcher=["srun", "--ntasks=3"])
    luigi = start(pair)
    assert luigi.finish() == 30
    assert "distributed.workers: found 2, but the launcher started 3 tasks: use srun --ntasks=2" in luigi.output
    assert "Traceback" not in luigi.output


def test_a_dead_node_is_noticed_and_the_training_resumes_elsewhere(
    chain: SmallChain, cluster: Slurm, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.wait_until_ready()
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.5)
    monkeypatch.setattr(liveness, "CHILD_TIMEOUT", 15.0)
    chain.configure(launcher=SRUN, training__checkpoint_seconds=0.1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nodes: list[str] = []

    def kill_node(event: dict[str, Any]) -> None:
        if "started on" in event.get("message", ""):
            nodes.append(event["message"].split()[2])
        if not nodes[1:] and "epoch 9/" in event.get("message", "") and checkpoints(chain):
            nodes.append("killed")
            cluster.kill_node(nodes[0])

    run = chain.chain().run()
    assert run is not None
    try:
        with pytest.raises(StageFailed, match=r"no heartbeat from its process on n\d"):
            parent.run_stage("train", chain.chain(), log=run.log("train"), on_event=kill_node, launcher=SRUN)
        resumes_to_the_same_weights(chain, undisturbed)
    finally:
        cluster.start_node(nodes[0])
