"""Failures under the sample luigi.cfg: retries, exit codes, and tasks that luigid disables."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import luigi
import pytest
from luigi.scheduler import Scheduler
from luigi_runs import CHECKOUT, SmallChain
from luigid_process import luigid, wait_for

import tasks
from pipeline.errors import AlreadyRunning, Interrupted
from pipeline.storage import locks
from pipeline.workspace import Workspace, events
from tasks import exit_codes, stage
from tasks.worker import Failure, Worker, failure

#: A launcher under which no training starts, as if its machine were down.
BROKEN = ("--vgg-launcher", "false")


@pytest.fixture
def sample(tmp_path: Path) -> str:
    """The path of the sample luigi.cfg with short intervals and a high retry count."""
    return _sample(tmp_path / "luigi.cfg", retry_count="1000")


def _sample(file: Path, **changes: str) -> str:
    """Write the sample with short intervals and without options that need further packages."""
    short = {"retry_delay": "0\nprune_on_get_work = true", "wait_interval": "0.2\nwait_jitter = 0"}
    own = {"record_task_history": "false", "metrics_collector": "default", "state_path": f"{file.parent}/state.pickle"}
    lines = []
    for line in (CHECKOUT / "config" / "luigi.cfg").read_text().splitlines():
        key = line.partition(" = ")[0]
        lines.append(f"{key} = {value}" if (value := {**short, **own, **changes}.get(key)) else line)
    file.write_text("\n".join(lines))
    return str(file)


def _trainings(chain: SmallChain) -> int:
    recorded = [(event["event"], event["stage"]) for event in events.read(Workspace(chain.workspace))]
    return recorded.count(("started", "train"))


@contextlib.contextmanager
def _somebody_trains(chain: SmallChain) -> Iterator[None]:
    run = chain.chain().run()
    assert run
    with locks.hold(run.lock("train"), "train", wait=False):
        yield


def test_a_stage_that_waits_for_another_command_can_be_stopped_by_message(
    prepared: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "vgg", lambda: SimpleNamespace(overlap="wait"))
    message = Mock(content="stop")
    task = tasks.TrainVGG(config=str(prepared.config), workspace=str(prepared.workspace))
    task.lost_locks = True  # left over from an earlier attempt
    task.scheduler_messages = queue.Queue()  # type: ignore[attr-defined]
    task.scheduler_messages.put(message)  # type: ignore[attr-defined]
    with _somebody_trains(prepared), pytest.raises(Interrupted, match="stopped while waiting"):
        task.run()
    message.respond.assert_called_once_with("ok")
    assert _trainings(prepared) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_with_overlap_leave_a_lock_is_tried_once_and_the_command_exits_with_10(
    prepared: SmallChain, sample: str, workers: str
) -> None:
    with _somebody_trains(prepared):
        result = prepared.luigi("Report", "--workers", workers, LUIGI_CONFIG_PATH=sample)
    assert result.rc == 10, result.text
    assert result.log.count("is already being worked on by") == 1
    assert "retrying" not in result.log
    assert prepared.luigi("TrainVGG", LUIGI_CONFIG_PATH=sample).rc == 0


@pytest.mark.parametrize("ends", [0, 30])
def test_with_overlap_wait_only_the_outcome_after_waiting_counts(
    prepared: SmallChain, tmp_path: Path, ends: int
) -> None:
    if ends:
        prepared.configure(training__init_from="there-is-no-such.params")
    place = {"LUIGI_CONFIG_PATH": _sample(tmp_path / "luigi.cfg", overlap="wait")}
    with contextlib.ExitStack() as other:
        other.enter_context(_somebody_trains(prepared))
        with prepared.start("TrainVGG", **place) as command:
            wait_for(lambda: "waiting for process" in command.output, "a line about waiting")
            other.close()
            assert command.finish() == ends, command.output
    assert _trainings(prepared) == 1
    assert command.output.count("there-is-no-such.params") == (1 if ends else 0)
    assert "retrying" not in command.output


class Ending(luigi.Task):
    ending = luigi.Parameter()

    def complete(self) -> bool:
        if self.ending == "unknown":
            raise ValueError
        return False

    def run(self) -> None:
        if self.ending == "refused":
            exit_codes.request_exit_code(exit_codes.REFUSED)
        else:
            raise AlreadyRunning("busy") if self.ending == "busy" else ValueError

    def on_failure(self, exception: BaseException) -> Failure:
        return failure(exception, str(exception))


class Missing(luigi.ExternalTask):
    ending = luigi.Parameter()

    def complete(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("endings", "code"),
    [
        ("busy", 10),
        ("refused", 5),
        ("busy unknown", 35),
        ("busy missing", 20),
        ("busy failed", 30),
        ("refused failed", 30),
        ("refused missing", 20),
        ("refused busy", 5),
    ],
)
def test_the_worst_outcome_of_any_task_decides_the_exit_code(
    endings: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_codes, "_requested", bytearray(2))
    with Worker(scheduler=Scheduler(), no_install_shutdown_handler=True) as worker:
        for ending in endings.split():
            worker.add((Missing if ending == "missing" else Ending)(ending=ending))
        worker.run()
    assert exit_codes.requested_exit_code() == code


@pytest.mark.parametrize("task", ["Verify", "Rollback", "SetAside"])
def test_maintenance_tasks_are_tried_once(prepared: SmallChain, sample: str, task: str) -> None:
    (dataset,) = prepared.workspace.glob("datasets/*/train_images.npy")
    dataset.write_bytes(b"damaged")
    about = ("--stage", "report") if task == "SetAside" else ()
    result = prepared.luigi(task, *about, LUIGI_CONFIG_PATH=sample)
    assert result.rc == {"Verify": 4}.get(task, 30), result.text
    assert "retrying" not in result.log
    errors = [line for line in result.log.splitlines() if line.startswith("ERROR")]
    assert len(errors) <= 1


def test_a_retry_accepts_messages_too_and_a_stop_by_message_ends_the_command(
    prepared: SmallChain, sample: str, tmp_path: Path
) -> None:
    prepared.configure(training__epochs=100_000)
    script = tmp_path / "second-time.sh"
    script.write_text(f'test -e {tmp_path}/once && exec "$@"\ntouch {tmp_path}/once; exit 1\n')
    with luigid(tmp_path / "luigid", LUIGI_CONFIG_PATH=sample) as central:
        launcher = ("--vgg-launcher", f"sh {script}")
        with prepared.start("Report", *launcher, scheduler=central.scheduler, LUIGI_CONFIG_PATH=sample) as command:
            wait_for(lambda: _trainings(prepared) == 2, "the retry")
            task = wait_for(lambda: central.running("TrainVGG"), "the training")
            assert task["accepts_messages"], "the page has no button"
            wait_for(lambda: central.message(task["task_id"]), "its first message")
            assert central.send_message(task, "stop") == "ok"
            assert command.finish() == 30, command.output
        assert _trainings(prepared) == 2
        assert command.output.count(": retrying when luigid allows it ([scheduler] retry_delay)") == 1
        # A stopped task is open for the next command, however often it failed before.
        assert prepared.luigi("Status").rc in (0, 3)
        assert central.api("task_list", status="DISABLED", upstream_status="") == {}


def test_a_task_that_luigid_disabled_is_reported_with_a_remedy(prepared: SmallChain, tmp_path: Path) -> None:
    file = _sample(tmp_path / "luigi.cfg", retry_count="1")
    place = {"LUIGI_CONFIG_PATH": file}
    with luigid(tmp_path / "luigid", **place) as central:
        failed = prepared.luigi("TrainVGG", *BROKEN, scheduler=central.scheduler, **place)
        assert failed.rc == 30, failed.text
        refused = prepared.luigi("TrainVGG", scheduler=central.scheduler, **place)
        assert refused.rc == 25, refused.text
        assert refused.ran == []
        (task_id,) = central.api("task_list", status="DISABLED", upstream_status="")
        line = ": disabled by luigid after too many failures until 20"
        for log in (failed.log, refused.log):
            assert log.count(line) == 1
            assert f"click Re-enable on luigid's page ({central.url}/" in log
        central.api("re_enable_task", task_id=task_id)  # what the button does
        assert prepared.luigi("TrainVGG", scheduler=central.scheduler, **place).rc == 0


def test_a_task_that_the_sample_disables_one_night_runs_the_next() -> None:
    (line,) = [line for line in (CHECKOUT / "config/luigi.cfg").read_text().splitlines() if "disable_persist =" in line]
    assert int(line.rpartition("=")[2]) <= 12 * 3600
