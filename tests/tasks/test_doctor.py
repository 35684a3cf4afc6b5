"""Doctor reports each planted fault, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from luigi_runs import SmallChain, luigi_command, run

from pipeline import doctor
from pipeline.storage import locks
from pipeline.workspace import Workspace, events

MACHINE = ["python", "mxnet", "device", "threads", "load", "shared memory", "disk", "workspace", "locks"]
CHECKS = [*MACHINE, "luigi config", "luigid"]

Examined = Callable[[SmallChain], dict[str, str]]


def _examine(chain: SmallChain, *arguments: str, **environment: str) -> dict[str, str]:
    """The problems that Doctor finds, by the name of the check."""
    result = chain.luigi("Doctor", "--json", *arguments, **environment)
    found = json.loads(result.output)
    problems = {finding["name"]: finding["text"] for finding in found["findings"] if not finding["ok"]}
    assert result.rc == (6 if problems else 0), result.text
    assert found["ok"] == (not problems)
    assert "Traceback" not in result.text
    return problems


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Examined:
    """Like `_examine`, but in this process and without trying MXNet."""
    monkeypatch.setattr(doctor, "machine_learning", lambda config: [])

    def examine(chain: SmallChain) -> dict[str, str]:
        return {finding.name: finding.text for finding in doctor.examine(chain.chain()) if not finding.ok}

    return examine


def _package(folder: Path, name: str, code: str) -> str:
    """Return a Python path on which `code` replaces the package `name`."""
    package = folder / "planted" / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    return os.pathsep.join((str(package.parent), str(Path(doctor.__file__).parents[1])))


def test_a_healthy_machine_is_all_ok_and_nothing_is_logged(prepared: SmallChain) -> None:
    before = events.read(Workspace(prepared.workspace))
    result = prepared.luigi("Doctor")
    assert result.rc == 0, result.text
    lines = result.output.splitlines()
    assert [line[9:22].strip() for line in lines] == CHECKS
    assert all(line.startswith("ok ") for line in lines)
    assert result.log == ""
    assert _examine(prepared) == {}
    assert events.read(Workspace(prepared.workspace)) == before


def test_a_missing_workspace_is_not_created(fresh: SmallChain, examined: Examined) -> None:
    assert examined(fresh) == {}
    assert not fresh.workspace.exists()


def test_numpy_2(prepared: SmallChain, tmp_path: Path) -> None:
    path = tmp_path / "planted" / "numpy-2.1.3.dist-info"
    path.mkdir(parents=True)
    (path / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.3\n")
    both = os.pathsep.join((str(path.parent), str(Path(doctor.__file__).parents[1])))
    problems = _examine(prepared, PYTHONPATH=both)
    assert list(problems) == ["mxnet"]
    assert "numpy 2.1.3 is too new" in problems["mxnet"]
    assert "pip install 'numpy" in problems["mxnet"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise OSError('libcudnn.so.8: cannot open shared object file: No …')", "pip install nvidia-cudnn-cu11"),
        ("os.kill(os.getpid(), signal.SIGILL)", "killed by SIGILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 6)", "killed by signal 40"),
        (r"os.write(2, b'caf\xe9\n'); os._exit(3)", "failed: caf"),
    ],
)
def test_mxnet_that_lacks_a_library_or_crashes(prepared: SmallChain, tmp_path: Path, code: str, words: str) -> None:
    problems = _examine(prepared, PYTHONPATH=_package(tmp_path, "mxnet", f"import os, signal; {code}"))
    assert list(problems) == ["mxnet"]
    assert words in problems["mxnet"]


def test_a_missing_gpu(prepared: SmallChain) -> None:
    prepared.configure(device="gpu:7")
    problems = _examine(prepared)
    assert list(problems) == ["device"]
    assert "gpu:7" in problems["device"]


def test_a_number_of_threads_that_hurts(
    prepared: SmallChain, examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("4096", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        problems = examined(prepared)
        assert list(problems) == ["threads"]
        assert value in problems["threads"]
    # MXNet is still tried, with one thread: it would not start with a wrong number.
    assert list(_examine(prepared, OMP_NUM_THREADS="0")) == ["threads"]


def test_a_training_that_holds_all_cores_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "turn_lock", lambda: tmp_path / "cores.lock")
    assert "others wait" not in doctor.load()
    with locks.hold(tmp_path / "cores.lock", "train x", wait=False):
        assert f"process {os.getpid()} on {socket.gethostname()} since " in doctor.load()
        assert doctor.load().endswith(" trains on all of them: other trainings wait")


def test_read_only_shared_memory_is_reported_by_every_command(prepared: SmallChain) -> None:
    inside = ["unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro /dev/shm && exec "$@"', "sh"]
    if run([*inside, "true"], prepared.cwd).rc:
        pytest.skip("no mount namespaces here")
    about = ["--config", str(prepared.config), "--workspace", str(prepared.workspace), "--local-scheduler"]
    for task in ("Doctor", "TrainVGG"):
        result = run([*inside, *luigi_command(), "--module", "tasks", task, *about], prepared.cwd)
        (line,) = (line for line in result.text.splitlines() if "/dev/shm" in line)
        assert "cannot create a semaphore (Read-only file system), and Luigi cannot run without one" in line
        assert result.rc == 35
        assert "Traceback" not in result.text


def test_a_disk_that_is_too_small(prepared: SmallChain, examined: Examined) -> None:
    prepared.configure(architecture__dense=[65536] * 40)
    problems = examined(prepared)
    assert list(problems) == ["disk"]
    assert "free some space" in problems["disk"]


def test_an_unwritable_workspace(prepared: SmallChain, examined: Examined) -> None:
    prepared.workspace = Path("/proc/sys/kernel/artifacts")
    problems = examined(prepared)
    assert "workspace" in problems
    assert set(problems) <= {"workspace", "disk"}


def test_an_unreadable_workspace(prepared: SmallChain, examined: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(doctor, "_existing", refused)
    problems = examined(prepared)
    assert list(problems) == ["disk", "workspace"]
    assert all(f"{prepared.workspace}: cannot access it: permission denied" in text for text in problems.values())


def test_a_file_where_the_workspace_should_be(fresh: SmallChain, examined: Examined) -> None:
    fresh.workspace.write_text("")
    problems = examined(fresh)
    assert list(problems) == ["workspace"]
    assert "is a file" in problems["workspace"]


def test_a_lock_that_was_left_behind(prepared: SmallChain, examined: Examined) -> None:
    lock = Workspace(prepared.workspace).lock("mini.train")
    lock.parent.mkdir(parents=True, exist_ok=True)
    # The holder starts a process that inherits the lock, and dies.
    code = (
        "import os, subprocess, sys; from pathlib import Path; from pipeline.storage import locks\n"
        "with locks.hold(Path(sys.argv[1]), 'x', False) as held:\n"
        "    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}\n"
        "    child = subprocess.Popen(['sleep', '600'], pass_fds=[held], **quiet)\n"
        "    print(child.pid, flush=True)\n"
        "    os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(lock)], capture_output=True, text=True, check=True)
    try:
        problems = examined(prepared)
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)
    assert list(problems) == ["locks"]
    assert str(lock) in problems["locks"]


def test_a_luigi_config_path_that_does_not_exist(prepared: SmallChain) -> None:
    problems = _examine(prepared, LUIGI_CONFIG_PATH="/nowhere/luigi.cfg")
    assert list(problems) == ["luigi config"]
    assert "/nowhere/luigi.cfg" in problems["luigi config"]


def test_a_mistake_in_luigi_cfg(prepared: SmallChain) -> None:
    file = prepared.cwd / "luigi.cfg"
    file.write_text("[scheduler]\nretry_cuont = 3\n")
    # Luigi finds the same file in two ways; it is named once.
    problems = _examine(prepared, LUIGI_CONFIG_PATH=str(file))
    assert list(problems) == ["luigi config"]
    assert "in [scheduler] (did you mean retry_count?)" in problems["luigi config"]
    assert problems["luigi config"].count(str(file)) == 1


def test_options_that_luigi_reads_without_declaring_them_are_not_mistakes(prepared: SmallChain) -> None:
    (prepared.cwd / "luigi.cfg").write_text(
        "[core]\nrpc-retry-wait = 5\nno_configure_logging = false\nsmtp_host = localhost\n"
        "[email]\nreceiver = ops@example.org\n[smtp]\nport = 25\n[task_history]\ndb_connection = sqlite://\n"
    )
    assert _examine(prepared) == {}


def test_luigid_that_is_not_running(prepared: SmallChain) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        result = prepared.luigi("Doctor", "--json", scheduler=("--scheduler-port", port))
    problems = {item["name"]: item["text"] for item in json.loads(result.output)["findings"] if not item["ok"]}
    assert list(problems) == ["luigid"]
    assert "start one with luigid" in problems["luigid"]
