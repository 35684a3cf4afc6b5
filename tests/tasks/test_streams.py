"""Closed, full or unread standard streams change neither the work nor the exit code."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from luigi_runs import Result, SmallChain, clean_environment, luigi_command, run
from PIL import Image


def _shell(chain: SmallChain, *arguments: str, to: str) -> Result:
    """Run a command with its streams redirected by a shell. Returns the command's own exit code."""
    command = shlex.join([*luigi_command(), "--module", "tasks", *arguments, "--workspace", str(chain.workspace)])
    return run(["bash", "-c", f"set -o pipefail; {command} {to}; exit ${{PIPESTATUS[0]}}"], chain.cwd)


@pytest.mark.parametrize("to", ["2>&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_the_work_is_done_whatever_happens_to_the_output(done: SmallChain, to: str) -> None:
    page = done.folder("report") / "index.html"
    content = page.read_bytes()
    page.unlink()
    report = ["Report", "--config", str(done.config), "--local-scheduler"]
    result = _shell(done, *report, to=to)
    assert result.rc == 0, result.text
    assert len(page.read_bytes()) == len(content)
    assert "Traceback" not in result.text
    done.configure(training__epochs="many")
    assert _shell(done, *report, to=to).rc == 2


@pytest.mark.parametrize("to", [">&-", ">/dev/full", "2>&-", "| true", "2>&1 | true"])
def test_lost_output_does_not_change_the_exit_code(done: SmallChain, to: str) -> None:
    (done.folder("train") / "model.params").write_bytes(b"damaged")
    result = _shell(done, "Verify", to=to)
    assert result.rc == 4, result.text
    assert "Traceback" not in result.text
    assert "Exception ignored" not in result.text
    result = _shell(done, "Status", "--config", str(done.config), to=to)
    assert result.rc == 3, result.text
    assert "Traceback" not in result.text


@pytest.mark.parametrize("to", [">&-", ">/dev/full", ">/dev/full 2>&1", "2>&-", "| true"])
def test_vgg_predict_succeeds_without_its_streams(finished: SmallChain, tmp_path: Path, to: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    predict = shlex.join([sys.executable, "-m", "pipeline.predict", "--model", str(finished.workspace), "black.png"])
    result = run(["bash", "-c", f"{predict} {to}; exit ${{PIPESTATUS[0]}}"], tmp_path)
    assert result.rc == 0, result.text
    assert "Traceback" not in result.text


def test_help_succeeds_even_if_nobody_reads_it(tmp_path: Path) -> None:
    command = shlex.join([*luigi_command(), "--module", "tasks", "Report", "--help"])
    for to in (">/dev/full", "| true"):
        result = run(["bash", "-c", f"{command} {to}; exit ${{PIPESTATUS[0]}}"], tmp_path)
        assert (result.rc, result.text) == (0, "")


def test_a_name_outside_the_locales_encoding_is_escaped(finished: SmallChain, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "Äpfel.png")
    command = [sys.executable, "-m", "pipeline.predict", "--model", str(finished.workspace), "Äpfel.png"]
    result = run(command, tmp_path, clean_environment(PYTHONIOENCODING="ascii"))
    assert result.rc == 0, result.text
    assert "\\xc4pfel.png" in result.output


def test_a_full_non_blocking_pipe_gets_everything(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = "from pipeline import streams; streams.ignore_write_errors(); print('x' * 1_000_000)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=writer, cwd=tmp_path, env=clean_environment()
    ) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert len(file.read()) == 1_000_001
    assert process.returncode == 0
