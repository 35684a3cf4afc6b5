"""One training in several processes on this host: the weights of a single process, and no process left behind."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_runs import checkpoints, eventually, listening, new_checkpoint, roles, start, weights
from luigi_runs import VGG8, SmallChain

from pipeline import config, training
from pipeline.errors import ConfigError, StageFailed
from pipeline.process import child
from pipeline.process.reporter import Reporter
from pipeline.training import distributed, rendezvous

#: Without batch normalisation, which depends on each worker's part of a batch.
VGG8_PLAIN = {"architecture": {**VGG8["architecture"], "batch_norm": False}, "training__initializer": "whitening"}


def arrays(chain: SmallChain) -> dict[str, np.ndarray]:
    """The weights of the finished training."""
    from pipeline import model
    from pipeline.runtime import mxnet

    mx = mxnet()
    net = model.build(chain.chain().config.architecture)
    net.load_parameters(str(chain.folder("train") / "model.params"), ctx=mx.cpu())
    return {name: parameter.data().asnumpy() for name, parameter in model.parameters(net).items()}


def history(chain: SmallChain) -> list[dict[str, str]]:
    with open(chain.folder("train") / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("workers", "network"), [(2, {}), (3, {}), (2, VGG8_PLAIN)])
def test_several_workers_reach_the_weights_of_one(chain: SmallChain, workers: int, network: dict[str, Any]) -> None:
    # 200 images in batches of 19: ten full batches and one of ten images; 5 epochs are 55 steps
    chain.configure(
        training__epochs=5,
        training__batch_size=19,
        training__learning_rate=0.01,
        training__augmentation={"pad_crop": 2, "cutout": 6},
        **network,
    )
    assert start(chain).finish() == 0
    alone, history_alone = arrays(chain), history(chain)
    chain.configure(distributed={"workers": workers})
    assert chain.luigi("TrainVGG").ran == [], "the number of workers is no reason to train again"
    shutil.rmtree(chain.folder("train"))
    assert start(chain).finish() == 0
    together = arrays(chain)
    for name, value in alone.items():
        assert np.linalg.norm(together[name] - value) <= 1e-5 * np.linalg.norm(value), name
    assert chain.manifest("train")["details"]["workers"] == workers
    for one, several in zip(history_alone, history(chain), strict=True):
        assert float(several["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-4)
        assert float(several["train_accuracy"]) == pytest.approx(float(one["train_accuracy"]), abs=0.011)
    if workers > 2:  # their sums must not depend on the order of arrival
        once = weights(chain)
        shutil.rmtree(chain.folder("train"))
        assert start(chain).finish() == 0
        assert weights(chain) == once


def test_a_last_batch_with_fewer_images_than_workers_is_trained_on(chain: SmallChain) -> None:
    # 121 images in batches of 2
    chain.configure(
        distributed={"workers": 2}, training__epochs=1, training__validation_images=119, training__batch_size=2
    )
    assert start(chain).finish() == 0
    together = history(chain)
    chain.configure(distributed={"workers": 1})
    shutil.rmtree(chain.folder("train"))
    assert start(chain).finish() == 0
    for one, several in zip(history(chain), together, strict=True):
        assert float(several["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-4)


@pytest.fixture
def pair(chain: SmallChain) -> SmallChain:
    """A chain that trains with two workers for a while and writes checkpoints all the time."""
    chain.configure(distributed={"workers": 2}, training__epochs=15, training__checkpoint_seconds=0.05)
    return chain


#: Which process is killed, and the expected message. Each time the same command runs again afterwards.
INCIDENTS = [
    ("server", "was killed by SIGKILL"),
    ("worker 0", "was killed by SIGKILL"),
    ("supervisor", "was killed"),
]


def test_a_dead_process_ends_the_others_and_the_next_run_resumes_exactly(
    pair: SmallChain, with_data: SmallChain, tmp_path: Path
) -> None:
    for name, message in INCIDENTS:
        before = checkpoints(pair)
        luigi = start(pair)
        new_checkpoint(pair, luigi, before)
        everyone = roles(pair)
        assert sorted(everyone) == ["scheduler", "server", "supervisor", "worker 0", "worker 1"]
        os.kill(everyone[name], signal.SIGKILL)
        moment = time.monotonic()
        assert luigi.finish() == 30, luigi.output
        eventually(lambda: not roles(pair), f"no process is left after {name} was killed", limit=60)
        assert time.monotonic() - moment < 60
        assert f"distributed training: {name} (process" in luigi.output or name == "supervisor"
        assert message in luigi.output
        assert "Traceback" not in luigi.output
    luigi = start(pair)
    new_checkpoint(pair, luigi, checkpoints(pair))
    addresses = [path for process in roles(pair).values() for path in listening(process)]
    assert len(addresses) == 4
    assert all(path.startswith("/tmp/") for path in addresses)
    eventually(lambda: not any(Path(path).exists() for path in addresses), "no one else can connect")
    luigi.send(signal.SIGINT)
    assert luigi.finish() == 130, luigi.output
    assert "checkpoint written at epoch" in luigi.output
    eventually(lambda: not roles(pair), "no process is left after Ctrl-C", limit=60)

    last = start(pair)
    assert last.finish() == 0, last.output
    details = pair.manifest("train")["details"]
    assert details["resumed"] == len(INCIDENTS) + 1
    assert details["exact"]
    eventually(lambda: not roles(pair), "no process is left at the end", limit=60)

    undisturbed = SmallChain(tmp_path / "undisturbed", with_data.archive, pair.values)
    luigi = start(undisturbed)
    assert luigi.finish() == 0, luigi.output
    assert weights(pair) == weights(undisturbed)
    assert [row["train_loss"] for row in history(pair)] == [row["train_loss"] for row in history(undisturbed)]


@pytest.mark.parametrize("name", ["scheduler", "server", "worker 1"])
def test_a_role_that_hangs_is_named(pair: SmallChain, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CLUSTER_TEST", str(pair.workspace))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pair.configure(training__epochs=1000)  # enough that it never finishes before the role is frozen
    chain, frozen = pair.chain(), list[int]()

    class Freezing(Reporter):
        def send(self, event: str, **values: Any) -> None:
            if event == "progress" and not frozen:
                frozen.append(roles(pair)[name])
                os.kill(frozen[0], signal.SIGSTOP)
                monkeypatch.setattr(distributed, "HEARTBEAT_TIMEOUT", 10.0)  # all imports are done

    placement = rendezvous.find_placement(chain.config, launched=False)
    with pytest.raises(StageFailed, match=f"distributed training: {name} .* hangs: no heartbeat"):
        distributed.supervise(chain, Freezing(), {}, placement)
    assert not roles(pair)


@pytest.mark.pythons
def test_resuming_with_another_number_of_workers_is_reported_as_inexact(pair: SmallChain) -> None:
    (pair.cwd / "pipeline").mkdir()
    (pair.cwd / "pipeline" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    luigi = start(pair)
    new_checkpoint(pair, luigi, [])
    luigi.send(signal.SIGINT)
    assert luigi.finish() == 130, luigi.output
    pair.configure(distributed={"workers": 1})
    luigi = start(pair)
    assert luigi.finish() == 0, luigi.output
    assert "not bit-reproducible: resumed with 1 worker instead of 2 (step" in luigi.output


def test_a_launcher_with_another_number_of_tasks_is_refused(monkeypatch: pytest.MonkeyPatch, pair: SmallChain) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURM_PROCID", "0")
    wanted = config.load(pair.config)
    with pytest.raises(ConfigError, match="found 2, but the launcher started 3 tasks: use srun --ntasks=2"):
        rendezvous.find_placement(wanted, launched=True)
    assert rendezvous.find_placement(wanted, launched=False).ranks == (0, 1)


def test_a_first_task_that_finds_the_training_finished_notifies_the_others(
    chain: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.configure(training__epochs=1)
    assert chain.luigi("TrainVGG").rc == 0
    chain.configure(distributed={"workers": 2})
    events = io.StringIO()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert training.train(chain.chain(), child.Reporter(events), {"launched": True})["stage"] == "train"
    (line,) = (json.loads(line)["line"] for line in events.getvalue().splitlines() if '"broadcast"' in line)

    follower = child.Reporter(io.StringIO())
    follower.broadcasts.put(line)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert training.train(chain.chain(), follower, {"launched": True}) == {}
    assert follower.events is None, "only the first task reports the result"
