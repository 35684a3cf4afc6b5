"""The `luigi` command as users see it: exit codes, one clear line per mistake, schedulers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios

import pytest
from luigi_runs import (
    CHECKOUT,
    LIMIT,
    SmallChain,
    assert_fails_clearly,
    clean_environment,
    free_port,
    luigi_command,
    run,
)

CONFIG = """\
data: {name: mini, source: mini.tar.gz}
architecture: {name: tiny, conv_arch: [[1, 4]]}
training: {epochs: 1}
"""


def assert_one_line(result, code, *words):
    """Assert that the command exited with `code` and printed a single line that contains `words`."""
    assert result.rc == code, result.text
    assert "Traceback" not in result.text
    lines = [line for line in result.text.splitlines() if line.strip()]
    assert len(lines) == 1, result.text
    for word in words:
        assert word in lines[0]


# --- mistakes in the configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epochs: 1", "epoch: 1", ["unknown key training.epoch", "did you mean epochs?"]),
        ("{epochs: 1}", "{epochs: 1, epochs: 2}", ["line 3", "duplicate key 'epochs'"]),
        ("epochs: 1", "epochs: many", ['training.epochs: found "many", expected an integer']),
        ("epochs: 1", "epochs: 0", ["training.epochs: found 0", ">= 1"]),
        ("[[1, 4]]", "[[1, 4], [1, 4], [1, 4], [1, 4], [1, 4], [1, 4]]", ["found 6 blocks", "32x32", "at most 5"]),
        ("[[1, 4]]", "[[1, 4", ["not valid YAML at line"]),
        ("name: tiny, ", "", ["missing key architecture.name"]),
        ("epochs: 1", '"\\e]0;x\\a\\n": 1', ["unknown key training.?]0;x?"]),
    ],
)
def test_a_bad_configuration_ends_with_code_2_and_one_line(fresh, old, new, words):
    assert old in CONFIG
    fresh.config.write_text(CONFIG.replace(old, new))
    assert_one_line(fresh.luigi("Report"), 2, str(fresh.config), *words)
    assert not fresh.workspace.exists()


def test_a_missing_configuration_ends_with_code_2_and_lists_the_ready_made_ones(fresh):
    fresh.config.unlink()
    assert_one_line(fresh.luigi("Report"), 2, str(fresh.config), "no such configuration file", "config/vgg11.yaml")


def test_a_workspace_whose_name_is_too_long_ends_with_code_2_and_one_line(fresh):
    result = fresh.luigi("Status", "--workspace", "a" * 300)
    assert result.rc == 2
    assert f"--workspace {'a' * 300}: not usable as a folder: File name too long" in result.text
    assert "Traceback" not in result.text


def test_a_workspace_that_is_not_a_folder_ends_with_code_2_and_one_line(fresh):
    fresh.workspace.symlink_to("nothing")
    words = f"--workspace {fresh.workspace}: is a file or a broken link"
    assert_one_line(fresh.luigi("Status"), 2, words)
    fresh.workspace.unlink()
    fresh.workspace.write_text("in the way")
    assert_one_line(fresh.luigi("Report"), 2, words)
    assert fresh.workspace.read_text() == "in the way"


def test_a_deleted_working_directory_is_reported_in_one_line(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    command = shlex.join([*luigi_command(), "--module", "tasks", "Status", "--config", "config/vgg11.yaml"])
    result = run(["sh", "-c", f"rmdir {folder} && exec {command}"], folder)
    assert_one_line(result, 2, "--workspace artifacts: not usable as a folder: No such file or directory")


def test_an_invalid_generation_name_is_refused(fresh):
    assert_one_line(fresh.luigi("Report", "--generation", "../up"), 2, "--generation", "'../up'")


# --- external failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "words"), [(100_000, "is truncated"), (0, "")])
def test_a_broken_or_missing_archive_fails_the_chain_with_one_clear_line(fresh, size, words):
    broken = fresh.root / "broken.tar.gz"
    if size:
        broken.write_bytes(fresh.archive.read_bytes()[:size])
    fresh.configure(data__source=str(broken))
    result = fresh.luigi("Report")
    assert_fails_clearly(result, 30, str(broken), words)
    assert result.ran == ["dataset"]


# --- working directory and environment --------------------------------------------------------------------------------


def test_it_runs_from_any_folder_with_relative_paths(done):
    nested = done.root / "some" / "where"
    nested.mkdir(parents=True)
    command = [*luigi_command(), "--module", "tasks", "Report", "--local-scheduler"]
    result = run([*command, "--config", "../../config.yaml", "--workspace", "../../artifacts"], nested)
    assert result.rc == 0, result.text
    assert "up to date" in result.log


@pytest.mark.pythons
def test_a_users_folder_with_the_name_of_ours_does_no_harm(done):
    for name in ("pipeline", "tasks"):
        (done.cwd / name).mkdir()
        (done.cwd / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    (done.folder("report") / "report.json").unlink()
    assert done.report().ran == ["report"]
    doctor = done.luigi("Doctor")
    assert doctor.rc == 0, doctor.text


@pytest.mark.parametrize("foreign", ["pipeline/__init__.py", "tasks.py"])
def test_a_package_that_shadows_ours_is_named_with_a_remedy(done, foreign):
    other = done.root / "other" / foreign
    other.parent.mkdir(parents=True)
    other.write_text("")
    (done.folder("report") / "report.json").unlink()
    path = os.pathsep.join((str(done.root / "other"), clean_environment()["PYTHONPATH"]))
    about = ["Report", "--config", str(done.config), "--workspace", str(done.workspace), "--local-scheduler"]
    if foreign != "tasks.py":  # otherwise none of our code runs
        result = run([*luigi_command(), "--module", "tasks", *about], done.cwd, clean_environment(PYTHONPATH=path))
        assert result.rc == 2, result.text
        (line,) = result.log.splitlines()
        assert line.startswith(f"{other} hides this plugin's pipeline ({CHECKOUT / 'pipeline'}) on the Python path")
        assert line.endswith("remove its folder from PYTHONPATH, or run luigi --module luigi_vgg")
    result = run([*luigi_command(), "--module", "luigi_vgg", *about], done.cwd, clean_environment(PYTHONPATH=path))
    assert result.rc == 0, result.text
    name = foreign.partition("/")[0].removesuffix(".py")
    assert f"{name}: using {CHECKOUT / name} instead of {other}, which comes first on the Python path" in result.log
    assert (done.folder("report") / "report.json").exists()


def test_two_packages_of_one_name_in_one_program_are_an_error(tmp_path):
    (tmp_path / "tasks.py").write_text("")
    program = "import tasks\ntry: import luigi_vgg\nexcept ImportError as error: print(error)"
    result = run([sys.executable, "-c", program], tmp_path)
    assert f"tasks is already imported from {tmp_path / 'tasks.py'}, not from {CHECKOUT / 'tasks'}" in result.output


@pytest.mark.pythons
def test_an_environment_that_would_stop_mxnet_does_not_reach_it(prepared):
    result = prepared.luigi("TrainVGG", DMLC_ROLE="server", OMP_NUM_THREADS="1,2", PYTHONOPTIMIZE="2")
    assert result.rc == 0, result.text
    assert prepared.manifest("train")["details"]["threads"] == 1


def test_the_users_own_exit_codes_take_precedence(fresh):
    fresh.configure(data__source=str(fresh.root / "nowhere.tar.gz"))
    (fresh.cwd / "luigi.cfg").write_text("[retcode]\ntask_failed = 77\nscheduling_error = 78\n")
    assert fresh.luigi("Report").rc == 77
    unreachable = ("--scheduler-port", str(free_port()))
    assert fresh.luigi("Report", scheduler=unreachable).rc == 78
    assert fresh.luigi("Report", "--retcode-scheduling-error", "79", scheduler=unreachable).rc == 79


# --- the scheduler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["port", "url", "luigi.cfg"])
def test_the_configured_scheduler_is_used_and_reported_at_once_if_unreachable(done, central, way):
    (done.folder("report") / "report.json").unlink()
    for port in (free_port(), central.port):
        url = f"http://127.0.0.1:{port}"
        if way == "luigi.cfg":
            text = f"[core]\ndefault-scheduler-host = 127.0.0.1\ndefault-scheduler-port = {port}\n"
            (done.cwd / "luigi.cfg").write_text(text)
        named = {
            "port": ("--scheduler-host", "127.0.0.1", "--scheduler-port", str(port)),
            "url": ("--scheduler-url", url),
        }
        result = done.luigi("Report", scheduler=named.get(way, ()))
        if port == central.port:
            assert (result.rc, result.ran) == (0, ["report"]), result.text
        else:
            expected = f"no luigid is running at {url}: start one with luigid, or add --local-scheduler"
            assert_one_line(result, 35, expected)
            assert result.seconds < 30, "Luigi's own first retry comes after 30 s"


def test_help_and_maintenance_need_no_scheduler(done):
    (done.cwd / "luigi.cfg").write_text(f"[core]\ndefault-scheduler-url = http://127.0.0.1:{free_port()}\n")
    assert "done" in done.luigi("Status", scheduler=()).output
    assert done.luigi("Verify", scheduler=()).rc == 0
    result = done.luigi("Report", "--help", scheduler=())
    assert result.rc == 0, result.text
    assert "--workspace" in result.output


# --- what is printed --------------------------------------------------------------------------------------------------


def test_a_run_logs_what_it_does_in_plain_lines(finished, tmp_path):
    chain = SmallChain(tmp_path / "chain", finished.archive)
    shutil.copytree(finished.workspace / "datasets", chain.workspace / "datasets")
    result = chain.luigi("TrainVGG")
    assert result.rc == 0, result.text
    assert "running: no result yet" in result.log
    assert "mini, not the official archive" in result.log
    assert "epoch 1/1: train loss" in result.log
    assert "\x1b" not in result.text, "control characters of a progress bar outside a terminal"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_on_a_terminal_long_lines_are_not_wrapped_and_a_single_worker_shows_a_bar(done, workers):
    (done.folder("report") / "report.json").unlink()
    paths = ["--config", str(done.config), "--workspace", str(done.workspace)]
    scheduler = ["--local-scheduler", "--workers", workers]
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(
        [*luigi_command(), "--module", "tasks", "Report", *paths, *scheduler],
        cwd=done.cwd,
        env=clean_environment(TERM="xterm"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    screen = b""
    with contextlib.suppress(OSError):  # the terminal closes with its last process
        while block := os.read(controller, 1 << 16):
            screen += block
    os.close(controller)
    assert process.wait(LIMIT) == 0, screen.decode()
    page = str(done.folder("report") / "index.html").encode()
    assert len(page) > 60
    whole = [line for line in screen.splitlines() if b"Z report tiny-" in line and b": report ready" in line]
    assert any(page in line for line in whole), screen.decode()
    bars = [line for line in re.split(r"[\r\n]+", screen.decode()) if "─" in line]
    assert bool(bars) == (workers == "1")
    for bar in bars:
        shown = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", bar)
        assert re.match(r"[━─]{20} +\d+ % +\d+:\d\d (so far|left)  report: ", shown), shown
        assert len(shown) <= 60
    assert workers != "1" or "report: starting" in bars[0]


def test_make_report_ends_with_how_to_get_the_commands(tmp_path):
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "luigi").write_text("#!/bin/sh\nexit $CODE\n")
    (environment / "bin" / "luigi").chmod(0o755)
    (environment / ".installed").touch()
    for code in (0, 30):
        make = ["make", "--no-print-directory", "--directory", str(CHECKOUT), "report", f"VENV={environment}"]
        result = run(make, tmp_path, clean_environment(CODE=str(code)))
        hint = f"to use luigi, luigid and vgg-predict in this shell: source {environment}/bin/activate"
        assert (result.output.splitlines()[-1:] == [hint]) is (code == 0), result.text


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        (
            b"caf\xe9",
            {},
            "'{}/caf\\udce9/artifacts', which is not UTF-8; give a path whose folders have names in UTF-8",
        ),
        (
            "café".encode(),
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "'{}/caf\\udcc3\\udca9/artifacts', which is not UTF-8; Python decodes file names as ascii here: unset",
        ),
    ],
)
def test_a_workspace_whose_path_is_not_utf_8_is_refused_before_anything_runs(tmp_path, name, more, words):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    (folder / "run.yaml").write_text(CONFIG)
    command = [*luigi_command(), "--module", "tasks", "Report", "--config", "run.yaml", "--local-scheduler"]
    result = run(command, folder, clean_environment(**more))
    assert_fails_clearly(result, 2, "--workspace: found " + words.format(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["run.yaml"]
