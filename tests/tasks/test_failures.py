"""Several workers, dying workers, retries: the exit code is right in each case."""

from __future__ import annotations

import psutil
import pytest
from luigi_runs import TIMEOUT, SmallChain


def test_four_workers_produce_the_same_files_as_one(prepared: SmallChain, finished: SmallChain) -> None:
    result = prepared.luigi("Report", "--workers", "4")
    assert result.rc == 0, result.text
    assert result.ran == ["train", "evaluate", "export", "report"]
    assert prepared.manifest("train")["files"]["model.params"] == finished.manifest("train")["files"]["model.params"]
    again = prepared.luigi("Report", "--workers", "4")
    assert (again.rc, again.ran) == (0, [])


@pytest.mark.parametrize("workers", ["1", "4"])
def test_a_stage_that_fails_ends_with_30_with_any_number_of_workers(prepared: SmallChain, workers: str) -> None:
    prepared.configure(training__init_from="there-is-no-such.params")
    result = prepared.luigi("Report", "--workers", workers)
    assert result.rc == 30, result.text
    assert result.ran == ["train"]
    assert "there-is-no-such.params" in result.log
    assert "Traceback" not in result.log


def test_a_worker_that_is_killed_fails_its_task_and_leaves_nothing_running(prepared: SmallChain) -> None:
    """With --workers 2, Luigi forks a process for each task; here it is killed in mid-training."""
    prepared.configure(training__epochs=100_000)
    with prepared.start("TrainVGG", "--workers", "2") as command:
        command.wait_for(lambda: "epoch 1/" in command.output, "the training")
        (worker,) = psutil.Process(command.process.pid).children()
        (training,) = worker.children()
        worker.kill()
        command.finish(30)
        training.wait(TIMEOUT)
    # Its work is not lost.
    prepared.configure(training__epochs=1)
    assert prepared.luigi("TrainVGG").rc == 0


def test_a_training_that_exceeds_worker_timeout_fails_and_keeps_its_checkpoint(
    prepared: SmallChain,
) -> None:
    prepared.configure(training__epochs=100_000)
    result = prepared.luigi("TrainVGG", "--worker-timeout", "6")
    assert result.rc == 30, result.text
    assert "stopped on request: checkpoint written" in result.log


def test_more_devices_than_images_in_a_batch_are_refused(prepared: SmallChain) -> None:
    prepared.configure(device="cpu:0,1,2", training__batch_size=2)
    result = prepared.luigi("TrainVGG")
    assert result.rc == 30, result.text
    assert "training.batch_size: batches of 2 images for 3 devices, but with batch_norm each device" in result.log
    assert "Traceback" not in result.text


def test_a_task_is_given_up_after_its_retries(prepared: SmallChain) -> None:
    policy = ("--scheduler-retry-count", "2", "--scheduler-retry-delay", "0", "--worker-keep-alive")
    result = prepared.luigi("TrainVGG", *policy, "--worker-wait-interval", "0.1", "--vgg-launcher", "false")
    assert result.rc == 30, result.text
    assert result.ran == ["train", "train"]
    assert "retrying in 0 s ([scheduler] retry_delay)" in result.log
    assert "failed too often ([scheduler] retry_count): giving up" in result.log
