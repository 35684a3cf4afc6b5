"""A stage's process as its parent sees it: what it says, how it ends, and that nothing of it is left."""

from __future__ import annotations

import os
import sys
import time

import pytest
from luigi_runs import LIMIT

from pipeline import launch
from pipeline.chain import Chain
from pipeline.config import from_dict
from pipeline.errors import DataError, Interrupted, StageFailed
from pipeline.workspace import Workspace

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
    """Runs a few lines of Python as the process of the stage `train`."""

    def run_child(lines, **how):
        monkeypatch.setattr(launch, "command", lambda stage: [sys.executable, "-c", HEAD + SAY + lines])
        return launch.run_stage("train", chain, log=tmp_path / "train.log", **how)

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
    sys.stdout.write('{"half": ')
    sys.stdout.flush()
    print(flush=True)
say(event="result", value={})
"""
    run_child(lines, on_event=events.append)
    assert [event["message"] for event in events] == ["0", "1", "2"]


def test_an_expected_error_comes_back_as_what_it_was(run_child):
    with pytest.raises(DataError, match=r"^no such thing$"):
        run_child("say(event='error', type='DataError', message='no such thing'); sys.exit(1)")


def test_an_unexpected_error_names_the_log(run_child, tmp_path):
    with pytest.raises(StageFailed, match=r"train failed: KeyError: 'x' \(details in .*train\.log\)"):
        run_child('say(event="error", type="Unexpected", message="KeyError: \'x\'"); sys.exit(1)')


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("os.kill(os.getpid(), 9)", "was killed (SIGKILL: by the out-of-memory killer or by hand)"),
        ("os.kill(os.getpid(), 11)", "died of SIGSEGV"),
        ("sys.exit(7)", "ended with status 7 and no result"),
        ("pass", "ended with status 0 and no result"),
        ("say(event='result', value={}); sys.exit(7)", "ended with status 7 and no result"),
    ],
)
def test_a_death_without_a_word_is_told_with_the_last_line_of_the_log(run_child, lines, words):
    with pytest.raises(StageFailed) as caught:
        run_child(f"print('the last words', file=sys.stderr, flush=True)\n{lines}")
    assert words in str(caught.value)
    assert str(caught.value).endswith("train.log: the last words")


def test_a_child_that_was_stopped_is_no_failure(run_child):
    with pytest.raises(Interrupted, match="run the same command again to go on"):
        run_child("sys.exit(3)")


def test_words_reach_the_child(run_child):
    words = iter([["checkpoint"], ["stop-after-epoch"]])
    result = run_child(
        "say(event='result', value={'words': [sys.stdin.readline().strip() for _ in range(2)]})",
        take_commands=lambda: next(words, []),
    )
    assert result == {"words": ["checkpoint", "stop-after-epoch"]}


def test_a_launcher_goes_in_front_of_the_command(run_child):
    result = run_child("say(event='result', value={'by': os.environ['BY']})", launcher=("env", "BY=launcher"))
    assert result == {"by": "launcher"}


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


def test_the_child_knows_its_threads_and_imports_this_very_package(run_child, monkeypatch, tmp_path):
    decoy = tmp_path / "somewhere" / "pipeline"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    monkeypatch.setenv("PYTHONPATH", str(decoy.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    lines = "import pipeline; say(event='result', value=[pipeline.__file__, os.environ['OMP_NUM_THREADS']])"
    file, threads = run_child(lines)
    assert file == os.path.join(os.path.dirname(launch.__file__), "__init__.py")
    assert threads == "3"
