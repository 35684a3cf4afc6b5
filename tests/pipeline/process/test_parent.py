"""A stage's process as its parent sees it: what it says, how it ends, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from luigi_runs import LIMIT, run

from pipeline import start
from pipeline.config import from_dict
from pipeline.errors import DataError, Interrupted, StageFailed
from pipeline.process import launcher, liveness, parent, pipes
from pipeline.process.cores import usable_cores
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain

HEAD = "import json, os, signal, sys, time\nrequest = json.loads(sys.stdin.readline())\n"
SAY = "def say(**event): print(json.dumps(event), flush=True)\n"


@pytest.fixture
def chain(tmp_path):
    value = {
        "data": {"name": "mini", "source": "mini.tar.gz"},
        "architecture": {"name": "tiny", "conv_arch": [[1, 4]]},
        "training": {"epochs": 1},
    }
    return Chain(Workspace(tmp_path / "artifacts"), from_dict(value))


@pytest.fixture
def run_child(chain, tmp_path, monkeypatch):
    """Runs a few lines of Python as the process of a stage, of `train` unless another one is given."""

    def run_child(lines, stage="train", chain=chain, **how):
        monkeypatch.setattr(parent, "module_command", lambda *module: [sys.executable, "-c", HEAD + SAY + lines])
        return parent.run_stage(stage, chain, log=tmp_path / "train.log", **how)

    return run_child


def test_the_child_gets_the_chain_and_gives_its_result(run_child, tmp_path):
    result = run_child("say(event='result', value={**request, 'x': 1})", options={"a": 2})
    assert result["workspace"] == str(tmp_path / "artifacts")
    assert result["config"]["architecture"]["name"] == "tiny"
    assert result["options"] == {"a": 2}
    assert result["x"] == 1


def test_events_are_passed_on_in_order_and_other_output_is_passed_over(run_child):
    events = []
    lines = """
for number in range(3):
    say(event="progress", fraction=number / 3, message=str(number))
    print("library chatter", [1], flush=True)
    say(level="info", message="of a launcher")
    say(level="info", event="of a launcher with structlog")
    sys.stdout.write('{"half": ')
    sys.stdout.flush()
    print(flush=True)
say(event="result", value={})
"""
    run_child(lines, on_event=events.append)
    assert [event["message"] for event in events] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("DataError", DataError, r"^no$"), ("Unexpected", StageFailed, r"train failed: no \(details in .*train\.log\)")],
)
def test_an_expected_error_comes_back_as_what_it_was_and_another_one_names_the_log(run_child, name, kind, message):
    with pytest.raises(kind, match=message):
        run_child(f"say(event='error', type='{name}', message='no'); sys.exit(1)")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("os.kill(os.getpid(), 9)", "was killed (SIGKILL: by the out-of-memory killer or by hand)"),
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "was killed by signal 40"),
        ("sys.exit(7)", "exited with status 7 and no result"),
        ("pass", "exited with status 0 and no result"),
        ("say(event='result', value={}); sys.exit(7)", "exited with status 7 and no result"),
    ],
)
def test_a_death_without_a_word_is_told_with_the_last_line_of_the_log(run_child, lines, words):
    with pytest.raises(StageFailed) as caught:
        run_child(f"print('the last words', file=sys.stderr, flush=True)\n{lines}")
    assert words in str(caught.value)
    assert str(caught.value).endswith("train.log: the last words")
    with pytest.raises(StageFailed, match=r"train\.log: \(none\)$"):
        run_child("sys.exit(7)")


def test_a_result_that_was_lost_on_its_way_is_read_where_it_lies(run_child, monkeypatch):
    monkeypatch.setattr(parent._Child, "is_done", lambda child: True)
    monkeypatch.setattr(parent.Chain, "folder", lambda chain, stage: Path(stage))
    monkeypatch.setattr(parent.manifest, "read", lambda folder: {"stage": folder.name})
    assert run_child('print(\'{"event": "result", "value": {"stage"\', flush=True)') == {"stage": "train"}


def test_a_child_that_was_stopped_is_no_failure(run_child):
    with pytest.raises(Interrupted, match="run the same command again to resume"):
        run_child("sys.exit(3)")


STOPPED = "say(event='note')\nassert sys.stdin.readline() == 'stop\\n'\n"


@pytest.mark.parametrize(
    ("stage", "lines", "message"),
    [
        ("train", "say(event='result', value={})", "train: finished before it could stop"),
        ("train", "sys.exit(3)", "train: did not stop in time; the next run resumes from its last checkpoint"),
        ("evaluate", "sys.exit(3)", "evaluate: did not stop in time; the next run starts it over"),
        ("evaluate", "say(event='error', type='Interrupted', message='as asked'); sys.exit(3)", "evaluate: as asked"),
    ],
)
def test_a_signal_ends_a_stage_and_hides_no_result(run_child, stage, lines, message):
    with pytest.raises(parent.Stopped) as stopped:
        run_child(STOPPED + lines, stage=stage, on_event=lambda event: os.kill(os.getpid(), signal.SIGTERM))
    assert (str(stopped.value), stopped.value.signal) == (message, signal.SIGTERM)
    assert stopped.value.finished == ("result" in lines)


def test_a_result_that_is_there_counts_whatever_its_process_had_time_to_say(finished, run_child):
    chain, interrupted = finished.chain(), "say(event='error', type='Interrupted', message=''); sys.exit(3)"
    for name in ("dataset", "train", "evaluate", "export", "report"):
        with pytest.raises(parent.Stopped, match=f"{name}: finished before it could stop") as stopped:
            run_child(
                STOPPED + interrupted,
                stage=name,
                chain=chain,
                on_event=lambda event: os.kill(os.getpid(), signal.SIGINT),
            )
        assert stopped.value.finished


def test_words_reach_the_child_also_through_a_launcher(run_child):
    words = iter([["checkpoint"], ["stop-after-epoch"]])
    lines = "say(event='result', value=[os.environ['BY'], *(sys.stdin.readline().strip() for _ in range(2))])"
    result = run_child(lines, launcher=("env", "BY=launcher"), take_commands=lambda: next(words, []))
    assert result == ["launcher", "checkpoint", "stop-after-epoch"]


def test_an_inherited_descriptor_stays_open_in_the_child(run_child, tmp_path):
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        os.write(descriptor, b"held")
        lines = f"say(event='result', value={{'size': os.fstat({descriptor}).st_size}})"
        assert run_child(lines, inherit=[descriptor]) == {"size": 4}
    finally:
        os.close(descriptor)


def test_the_child_is_gone_when_following_it_fails(run_child):
    pids = []

    def broken(event):
        pids.append(event["pid"])
        raise RuntimeError("the one who listens is broken")

    # Like every stage, this child ends when its standard input does.
    with pytest.raises(RuntimeError, match="the one who listens"):
        run_child("say(event='note', pid=os.getpid()); sys.stdin.read()", on_event=broken)
    limit = time.monotonic() + LIMIT
    while os.path.exists(f"/proc/{pids[0]}"):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_nobody_waits_for_a_child_that_does_not_read_and_it_misses_nothing():
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as output, open(writer, "wb", buffering=0) as standard_input:
        pipe = pipes.Input(SimpleNamespace(stdin=standard_input))
        lines = [f"{number} {'x' * 5000}" for number in range(40)]
        for line in lines:
            pipe.send(line)
            pipe.heartbeat()
        read = b""
        while lines[-1].encode() not in read:
            read += output.read(1 << 16)
            pipe.flush()
        told = [line for line in read.decode().split("\n") if line]
        assert told == lines
    pipe.send("after its end")
    pipe.heartbeat()


def test_a_queued_job_is_told_nothing_that_nobody_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.0)
    monitor = liveness.Monitor(["srun"], tmp_path / "log")
    assert not monitor.heartbeat_due()
    monitor.filter({"event": "hello", "host": "n1"}, None)
    assert monitor.heartbeat_due()


def test_a_parent_that_was_stopped_itself_reads_the_heartbeats_that_wait_before_it_calls_its_child_dead(tmp_path):
    moment, monitor = time.monotonic(), liveness.Monitor([], tmp_path / "log")
    child = subprocess.Popen(["sleep", "60"])
    monitor._last_received = monitor._last_call = moment - 2 * liveness.CHILD_TIMEOUT  # since Ctrl-Z
    monitor.filter(None, child)
    assert not monitor.lost
    monitor._last_received = moment - 2 * liveness.CHILD_TIMEOUT
    monitor.filter(None, child)
    assert monitor.lost
    assert child.wait() == -signal.SIGKILL


def test_the_child_gets_a_number_of_threads_that_mxnet_understands_and_a_wrong_one_is_told(run_child, monkeypatch):
    events = []
    lines = "say(event='result', value=os.environ['OMP_NUM_THREADS'])"
    for given, expected in (("3", "3"), ("3,1", "3"), ("many", str(usable_cores()))):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert run_child(lines, on_event=events.append) == expected
    said = f"OMP_NUM_THREADS: found 'many', expected a number of threads: unset it; using {usable_cores()}"
    assert [event["message"] for event in events] == [said]


def test_what_is_meant_for_the_parent_or_another_cluster_does_not_reach_the_child(run_child, monkeypatch):
    foreign = {"DMLC_ROLE": "server", "DMLC_NUM_WORKER": "7", "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error"}
    kept = {"DMLC_NODE_HOST": "10.0.0.1", "MXNET_SAFE_ACCUMULATION": "1", "PYTHONPATH": "/somewhere"}
    for name, value in {**foreign, **kept}.items():
        monkeypatch.setenv(name, value)
    seen = run_child("say(event='result', value=dict(os.environ))")
    assert not set(foreign) & set(seen)
    assert {name: seen[name] for name in kept} == kept
    words = launcher.command_line(["env"], ["python", "start", "x"], Path("/x"), Path("/x"))
    assert [name for flag, name in itertools.pairwise(words) if flag == "-u"] == list(launcher.DROPPED)


@pytest.fixture
def package(tmp_path):
    """A folder in which this package is installed beside what must not be found there, and a module that tells."""
    folder = tmp_path / "site" / "pipeline"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "start.py"):
        shutil.copy(Path(parent.__file__).parents[1] / name, folder)
    (folder / "tell.py").write_text("import enum, pipeline, beside, sys\nprint(pipeline.__file__, sys.argv[1:])\n")
    (folder.parent / "enum.py").write_text("raise RuntimeError('an old back-port of the standard library')\n")
    (folder.parent / "beside.py").write_text("")
    for other in ("decoy", "cwd"):
        decoy = tmp_path / other / "pipeline"
        decoy.mkdir(parents=True)
        (decoy / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    return folder


@pytest.mark.pythons
@pytest.mark.parametrize("safe", [{}, {"PYTHONSAFEPATH": "1"}])
def test_a_module_starts_one_way_under_every_python_and_finds_what_its_parent_found(package, tmp_path, safe):
    environment = {"PYTHONPATH": str(tmp_path / "decoy"), **safe}
    command = [sys.executable, str(package / "start.py"), "pipeline.tell", "a word"]
    done = run(command, tmp_path / "cwd", environment)
    assert done.rc == 0, done.text
    assert done.output == f"{package / '__init__.py'} ['a word']\n"


@pytest.mark.pythons
def test_a_python_with_a_package_of_its_own_does_not_take_that_of_the_folder_it_is_started_in(package, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "pipeline").symlink_to(package)
    (own / "beside.py").write_text("")
    command = [sys.executable, "-c", start.CODE, "pipeline.tell"]
    done = run(command, tmp_path / "cwd", {"PYTHONPATH": str(own)})
    assert done.rc == 0, done.text
    assert done.output == f"{own / 'pipeline' / '__init__.py'} []\n"


@pytest.mark.pythons
def test_every_process_of_the_plugin_is_started_that_way():
    folder = Path(parent.__file__).parents[1]
    for path in folder.rglob("*.py"):
        assert '"-m"' not in path.read_text(), f"{path} starts a module without parent.module_command"
    assert parent.module_command("pipeline.x", "y") == [sys.executable, str(folder / "start.py"), "pipeline.x", "y"]


EARLY = """
import os, sys
from pipeline.process.child import exit_with, main

def work(chain, reporter, options):
    print("a line for the log", file=sys.stderr, flush=True)
    os.system("echo and what a library prints")
    files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return {"pid": os.getpid(), "files": files, "options": options}

exit_with(main(work, imports=lambda: open(sys.argv[1], "w").write("imported")))
"""


@pytest.fixture
def early(tmp_path, monkeypatch, chain):
    """Starts the process of `train` early; gives its process when it has done its imports."""
    done = tmp_path / "imported"
    os.mkfifo(done)
    monkeypatch.setattr(parent, "module_command", lambda _, *words: [sys.executable, "-c", EARLY, str(done), *words])
    parent.start_early("train", chain)
    parent.start_early("train", chain)  # which it is already
    ((process, _),) = parent._early.values()
    assert done.read_text() == "imported"
    yield process
    parent.end_early()
    assert process.poll() is not None


def test_a_process_that_was_started_early_gets_the_work_the_log_and_the_locks(early, chain, tmp_path):
    with open(tmp_path / "some.lock", "w") as lock:
        found = parent.run_stage("train", chain, log=tmp_path / "log", inherit=[lock.fileno()], options={"a": 1})
    assert (found["pid"], found["options"]) == (early.pid, {"a": 1})
    assert str(tmp_path / "some.lock") in found["files"]
    assert (tmp_path / "log").read_text() == "a line for the log\nand what a library prints\n"


def test_in_place_of_a_process_that_was_started_early_and_has_died_another_one_does_the_work(early, chain, tmp_path):
    early.kill()
    early.wait()
    (tmp_path / "imported").unlink()
    assert parent.run_stage("train", chain, log=tmp_path / "log")["pid"] != early.pid


def test_a_process_that_was_started_early_ends_when_its_parent_is_killed(tmp_path):
    program = (
        "import os; from types import SimpleNamespace as Fake; from pipeline.process import parent\n"
        "chain = Fake(config=Fake(training=Fake(precision='float32')))\n"
        "parent.start_early('report', chain)\n"
        "print(parent._early['report'][0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = run([sys.executable, "-c", program], tmp_path)
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        ended = os.pidfd_open(int(killed.output))
        assert select.select([ended], [], [], LIMIT)[0]
