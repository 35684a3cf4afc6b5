"""A stage's process as its parent sees it: its events, how it ends, and that nothing is left behind."""

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
    """Runs a few lines of Python as the process of a stage, by default `train`."""

    def run_child(lines, stage="train", chain=chain, **how):
        monkeypatch.setattr(parent, "module_command", lambda *module: [sys.executable, "-c", HEAD + SAY + lines])
        return parent.run_stage(stage, chain, log=tmp_path / "train.log", **how)

    return run_child


def test_the_child_receives_the_chain_and_returns_its_result(run_child, tmp_path):
    result = run_child("say(event='result', value={**request, 'x': 1})", options={"a": 2})
    assert result["workspace"] == str(tmp_path / "artifacts")
    assert result["config"]["architecture"]["name"] == "tiny"
    assert result["options"] == {"a": 2}
    assert result["x"] == 1


def test_events_are_forwarded_in_order_and_other_output_is_ignored(run_child):
    events = []
    lines = """
for number in range(3):
    say(event="progress", fraction=number / 3, message=str(number))
    print("library chatter", [1], flush=True)
    say(level="info", message="from a launcher")
    say(level="info", event="from a launcher with structlog")
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
def test_an_expected_error_keeps_its_type_and_any_other_names_the_log(run_child, name, kind, message):
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
def test_a_silent_death_is_reported_with_the_last_line_of_the_log(run_child, lines, words):
    with pytest.raises(StageFailed) as caught:
        run_child(f"print('the last words', file=sys.stderr, flush=True)\n{lines}")
    assert words in str(caught.value)
    assert str(caught.value).endswith("train.log: the last words")
    with pytest.raises(StageFailed, match=r"train\.log: \(none\)$"):
        run_child("sys.exit(7)")


def test_a_result_lost_in_transit_is_read_from_the_manifest(run_child, monkeypatch):
    monkeypatch.setattr(parent._Child, "is_done", lambda child: True)
    monkeypatch.setattr(parent.Chain, "folder", lambda chain, stage: Path(stage))
    monkeypatch.setattr(parent.manifest, "read", lambda folder: {"stage": folder.name})
    assert run_child('print(\'{"event": "result", "value": {"stage"\', flush=True)') == {"stage": "train"}


def test_a_child_that_was_stopped_is_no_failure(run_child):
    with pytest.raises(Interrupted, match="run the same command again to resume"):
        run_child("sys.exit(3)")


STOPPED = "say(event='note', message='')\nassert sys.stdin.readline() == 'stop\\n'\n"


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


def test_an_existing_result_counts_even_if_its_process_did_not_report_it(finished, run_child):
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


def test_commands_reach_the_child_through_a_launcher(run_child):
    words = iter([["checkpoint"], ["stop-after-epoch"]])
    lines = "say(event='result', value={os.environ['BY']: [sys.stdin.readline().strip() for _ in range(2)]})"
    result = run_child(lines, launcher=("env", "BY=launcher"), take_commands=lambda: next(words, []))
    assert result == {"launcher": ["checkpoint", "stop-after-epoch"]}


def test_an_inherited_descriptor_stays_open_in_the_child(run_child, tmp_path):
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        os.write(descriptor, b"held")
        lines = f"say(event='result', value={{'size': os.fstat({descriptor}).st_size}})"
        assert run_child(lines, inherit=[descriptor]) == {"size": 4}
    finally:
        os.close(descriptor)


def test_no_child_is_left_when_following_it_fails(run_child):
    pids = []

    def broken(event):
        pids.append(event["pid"])
        raise RuntimeError("broken listener")

    # Like every stage, this child exits at the end of its standard input.
    with pytest.raises(RuntimeError, match="broken listener"):
        run_child("say(event='note', message='', pid=os.getpid()); sys.stdin.read()", on_event=broken)
    limit = time.monotonic() + LIMIT
    while os.path.exists(f"/proc/{pids[0]}"):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_child_that_does_not_read_blocks_nobody_and_misses_nothing():
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
        assert [line for line in read.decode().split("\n") if line] == lines
    pipe.send("after its exit")
    pipe.heartbeat()


def test_a_queued_job_gets_no_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.0)
    monitor = liveness.Monitor(["srun"], tmp_path / "log")
    assert not monitor.heartbeat_due()
    monitor.filter({"event": "hello", "host": "n1"}, None)
    assert monitor.heartbeat_due()


def test_a_suspended_parent_reads_pending_heartbeats_before_it_declares_its_child_dead(tmp_path):
    moment, monitor = time.monotonic(), liveness.Monitor([], tmp_path / "log")
    child = subprocess.Popen(["sleep", "60"])
    monitor._last_received = monitor._last_call = moment - 2 * liveness.CHILD_TIMEOUT  # since Ctrl-Z
    monitor.filter(None, child)
    assert not monitor.lost
    monitor._last_received = moment - 2 * liveness.CHILD_TIMEOUT
    monitor.filter(None, child)
    assert monitor.lost
    assert child.wait() == -signal.SIGKILL


def test_the_child_gets_a_valid_number_of_threads_and_an_invalid_one_is_reported(run_child, monkeypatch):
    events = []
    lines = "say(event='result', value={'threads': os.environ['OMP_NUM_THREADS']})"
    for given, expected in (("3", "3"), ("3,1", "3"), ("many", str(usable_cores()))):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert run_child(lines, on_event=events.append) == {"threads": expected}
    warning = f"OMP_NUM_THREADS: found 'many', expected a number of threads: unset it; using {usable_cores()}"
    assert [event["message"] for event in events] == [warning]


def test_variables_for_the_parent_or_another_cluster_do_not_reach_the_child(run_child, monkeypatch):
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
    """An installed package beside decoys that must not be imported; its module `tell` prints where it was found."""
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
def test_a_module_starts_the_same_way_under_every_python_with_its_parents_packages(package, tmp_path, safe):
    environment = {"PYTHONPATH": str(tmp_path / "decoy"), **safe}
    command = [sys.executable, str(package / "start.py"), "pipeline.tell", "a word"]
    done = run(command, tmp_path / "cwd", environment)
    assert done.rc == 0, done.text
    assert done.output == f"{package / '__init__.py'} ['a word']\n"


@pytest.mark.pythons
def test_a_python_with_its_own_package_ignores_the_one_in_its_working_directory(package, tmp_path):
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
    """The process of `train`, started early and done with its imports."""
    done = tmp_path / "imported"
    os.mkfifo(done)
    monkeypatch.setattr(parent, "module_command", lambda _, *words: [sys.executable, "-c", EARLY, str(done), *words])
    parent.start_early("train", chain)
    parent.start_early("train", chain)  # has no effect the second time
    ((process, _),) = parent._early.values()
    assert done.read_text() == "imported"
    yield process
    parent.end_early()
    assert process.poll() is not None


def test_an_early_process_gets_the_work_the_log_and_the_locks(early, chain, tmp_path):
    with open(tmp_path / "some.lock", "w") as lock:
        found = parent.run_stage("train", chain, log=tmp_path / "log", inherit=[lock.fileno()], options={"a": 1})
    assert (found["pid"], found["options"]) == (early.pid, {"a": 1})
    assert str(tmp_path / "some.lock") in found["files"]
    assert (tmp_path / "log").read_text() == "a line for the log\nand what a library prints\n"


def test_a_dead_early_process_is_replaced(early, chain, tmp_path):
    early.kill()
    early.wait()
    (tmp_path / "imported").unlink()
    assert parent.run_stage("train", chain, log=tmp_path / "log")["pid"] != early.pid


def test_an_early_process_ends_when_its_parent_is_killed(tmp_path):
    program = (
        "import os; from types import SimpleNamespace as Fake; from pipeline.process import parent\n"
        "chain = Fake(config=Fake(training=Fake(precision='float32')))\n"
        "parent.start_early('report', chain)\n"
        "print(parent._early['report'][0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = run([sys.executable, "-c", program], tmp_path)
    with contextlib.suppress(ProcessLookupError):  # it has already exited
        ended = os.pidfd_open(int(killed.output))
        assert select.select([ended], [], [], LIMIT)[0]
