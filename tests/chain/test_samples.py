"""The samples for an operator: luigi.cfg, systemd units, crontab line; run as they stand where that can be done."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from luigi_runs import CHECKOUT, SmallChain, clean_environment, run
from luigid_process import luigid, wait_for

from pipeline import config

CONFIG = CHECKOUT / "config"
UNITS = CONFIG / "systemd"
BIN = Path(sys.executable).parent

#: Paths in the samples that an operator may have to change.
INSTALLED, DATA, STATE = "/opt/luigi-vgg/.venv/bin", "/srv/vgg", "/var/lib/luigi"


def _luigi_cfg(folder: Path) -> Path:
    """The sample, with its state in `folder`."""
    text = (CONFIG / "luigi.cfg").read_text()
    assert STATE in text
    file = folder / "luigi.cfg"
    file.write_text(text.replace(STATE, str(folder)))
    return file


def _needs_luigids_packages() -> None:
    for name in ("sqlalchemy", "prometheus-client"):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = ""
        if not found or (name == "sqlalchemy" and not found.startswith("1.")):
            pytest.skip(f"luigid needs {name} for all of the sample: pip install '.[luigid]'")


def test_luigid_keeps_history_figures_and_state_with_the_sample(prepared: SmallChain, tmp_path: Path) -> None:
    _needs_luigids_packages()
    file = _luigi_cfg(tmp_path)
    with luigid(tmp_path, LUIGI_CONFIG_PATH=str(file)) as central:
        ran = prepared.luigi("TrainVGG", scheduler=central.scheduler, LUIGI_CONFIG_PATH=str(file))
        assert ran.rc == 0, ran.text
        assert "TrainVGG" in central.get("history").decode()
        assert re.search(r"^luigi_task_done_total.*TrainVGG.* 1\.0$", central.get("metrics").decode(), re.MULTILINE)
    assert (tmp_path / "state.pickle").stat().st_size > 0
    assert (tmp_path / "task-history.db").stat().st_size > 0
    # A luigid that is started again knows what there was.
    with luigid(tmp_path, LUIGI_CONFIG_PATH=str(file)) as central:
        tasks = central.api("task_list", status="DONE", upstream_status="")
        assert "TrainVGG" in {task["name"] for task in tasks.values()}


def test_luigi_understands_every_line_of_the_sample_and_needs_none_of_luigids_packages(
    done: SmallChain, tmp_path: Path
) -> None:
    for name in ("prometheus_client", "sqlalchemy"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    place = {"LUIGI_CONFIG_PATH": str(_luigi_cfg(tmp_path)), "PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"}
    for task in ("Report", "Doctor"):
        result = done.luigi(task, **place)
        assert result.rc == 0, result.text
    assert str(tmp_path / "luigi.cfg") in result.output


def test_a_task_that_fails_is_tried_three_times_and_then_left_alone(prepared: SmallChain, tmp_path: Path) -> None:
    """The sample's retry policy, with the minutes between two tries made short."""
    _needs_luigids_packages()
    file = _luigi_cfg(tmp_path)
    text = (
        file.read_text()
        .replace("retry_delay = 60", "retry_delay = 0\nprune_on_get_work = true")
        .replace("wait_interval = 5", "wait_interval = 1")
    )
    file.write_text(text)
    with luigid(tmp_path, LUIGI_CONFIG_PATH=str(file)) as central:
        broken = ("--vgg-launcher", "false")  # no training starts: as with a machine that is not there
        result = prepared.luigi("Export", *broken, scheduler=central.scheduler, LUIGI_CONFIG_PATH=str(file))
        assert result.rc == 30, result.text
        assert result.ran == ["train"] * 3
        disabled = central.api("task_list", status="DISABLED", upstream_status="")
        assert [task["name"] for task in disabled.values()] == ["TrainVGG"]
        # The next start, a minute later, say: nothing is tried, and that is no success.
        again = prepared.luigi("Export", scheduler=central.scheduler, LUIGI_CONFIG_PATH=str(file))
        assert again.ran == []
        assert again.rc == 25, again.text


def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on this machine: apt install systemd")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace(INSTALLED, str(BIN))
        (tmp_path / unit.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 6
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if any(Path(unit).name in line for unit in units)]
    assert (done.returncode, complaints) == (0, []), done.stderr
    for timer in UNITS.glob("*.timer"):
        calendar = re.search(r"^OnCalendar=(.*)$", timer.read_text(), re.MULTILINE)
        assert calendar
        done = subprocess.run([analyze, "calendar", calendar[1]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def _command_of(unit: str) -> list[str]:
    line = re.search(r"^ExecStart=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    assert line
    return shlex.split(line[1].replace(INSTALLED, str(BIN)))


@pytest.mark.parametrize(("unit", "code"), [("vgg-retrain.service", "143"), ("vgg-prune.service", "SIGTERM")])
def test_what_systemctl_stopped_has_not_failed(unit: str, code: str) -> None:
    line = re.search(r"^SuccessExitStatus=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    assert line
    assert code in line[1].split()


def test_whoever_starts_luigid_as_shown_keeps_it_on_loopback() -> None:
    """Its API has no login, and what it hands out is run."""
    shown = [CHECKOUT / "README.md", *UNITS.iterdir(), CONFIG / "crontab", CONFIG / "luigi.cfg"]
    lines = [line for file in shown for line in file.read_text().splitlines() if re.search(r"\bluigid --", line)]
    assert len(lines) >= 2
    assert all("--address 127.0.0.1" in line for line in lines), lines


def test_the_services_commands_run(prepared: SmallChain, tmp_path: Path) -> None:
    """Started by hand as systemd would, with this test's configuration and luigid in the places of the real ones."""
    command = _command_of("vgg-retrain.service")
    assert command[command.index("--config") + 1] == "config/vgg11.yaml"
    command[command.index("--config") + 1] = str(prepared.config)
    command[command.index("--workspace") + 1] = str(prepared.workspace)
    with luigid(tmp_path / "luigid") as central:
        first = run([*command, *central.scheduler], prepared.cwd)
        assert first.rc == 0, first.text
        assert " promoted (first model)" in first.log
        second = run([*command, *central.scheduler], prepared.cwd)
        assert second.rc == 0, second.text
        assert "up to date: " in second.log
    server = _command_of("luigid.service")
    assert Path(server[0]).name == "luigid"
    server[server.index("--port") + 1] = str(central.port)
    process = subprocess.Popen(
        [*server, "--state-path", str(tmp_path / "state")], env=clean_environment(), stderr=subprocess.DEVNULL
    )
    try:
        central.process = process
        wait_for(central.answers, "luigid")
    finally:
        central.stop()
    assert (tmp_path / "state").exists()


@pytest.mark.parametrize(("planted", "code", "mail"), [("", 0, ""), ("epochs: none", 2, "Retrain ended with 2")])
def test_the_crontab_line_runs_and_mails_only_failures(
    prepared: SmallChain, planted: str, code: int, mail: str
) -> None:
    command, prune = _crontab(prepared.root)
    text = prepared.config.read_text()
    (prepared.root / "vgg11.yaml").write_text(re.sub(r"epochs: \d+", planted, text) if planted else text)
    # Cron's shell and its bare environment.
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "HOME": str(prepared.root)}
    done = run(["/bin/sh", "-c", command], prepared.root, bare)
    log = (prepared.root / "retrain.log").read_text()
    assert done.log == ""
    if mail:
        assert mail in done.output
        assert log.splitlines()[-1] in done.output
    else:
        assert done.output == ""
        assert " promoted (first model)" in log
    assert done.rc == 0, f"expected {code} to be reported but not passed on"
    pruned = run(["/bin/sh", "-c", prune], prepared.root, bare)
    assert ("Prune failed" in pruned.output) == bool(mail), pruned.text
    if not mail:
        assert pruned.output == ""
        assert "permanently deleting 0 trash folders and 0 leftovers" in (prepared.root / "retrain.log").read_text()


def _crontab(place: Path) -> list[str]:
    """The commands of the sample, for a workspace and a `vgg11.yaml` in `place`."""
    commands = []
    for line in (CONFIG / "crontab").read_text().splitlines():
        if not line.startswith("#"):
            assert "%" not in line, "cron takes % for a line break"
            *when, command = line.split(maxsplit=5)
            assert len(when) == 5
            command = command.replace(DATA, str(place)).replace(INSTALLED, str(BIN))
            commands.append(command.replace("config/vgg11.yaml", "vgg11.yaml"))
    return commands


def test_the_timer_and_the_crontab_prune_alike() -> None:
    service = _command_of("vgg-prune.service")[1:]
    crontab = shlex.split(_crontab(Path(DATA))[1].partition(" >>")[0])
    assert service[2:4] == ["Prune", "--config"]
    assert service[-3:] == ["--older-than", "30d", "--confirm"] == crontab[-4:-1]


def test_a_unit_that_fails_mails_the_end_of_its_log(tmp_path: Path) -> None:
    for unit in UNITS.glob("*.service"):
        assert ("OnFailure=vgg-mail@%n.service" in unit.read_text()) == ("@" not in unit.name), unit.name
    shell, option, line = _command_of("vgg-mail@.service")
    for name, script in (("systemctl", 'echo "status of $5: code=exited, status=5"; exit 3'), ("sendmail", "cat")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    for specifier, meaning in (("%i", "vgg-retrain.service"), ("%H", "node1"), ("/usr/sbin", str(tmp_path))):
        line = line.replace(specifier, meaning)
    mailed = run([shell, option, line], tmp_path, {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert mailed.rc == 0, mailed.text
    head, body = mailed.output.split("\n\n")
    assert head == "To: root\nSubject: vgg-retrain.service failed on node1"
    assert body == "status of vgg-retrain.service: code=exited, status=5\n"


def test_logrotate_takes_the_sample_and_a_running_training_loses_no_line(tmp_path: Path) -> None:
    logrotate = shutil.which("logrotate", path="/usr/sbin:/usr/bin")
    if logrotate is None:
        pytest.skip("no logrotate on this machine: apt install logrotate")
    text = (CONFIG / "logrotate").read_text()
    user = f"su {pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}"
    assert "su luigi luigi" in text
    sample = tmp_path / "sample"
    sample.write_text(text.replace("su luigi luigi", user).replace(DATA, str(tmp_path)))
    sample.chmod(0o644)
    with open(tmp_path / "retrain.log", "a") as log:
        print("epoch 1", file=log, flush=True)
        done = run([logrotate, "--force", "--state", str(tmp_path / "state"), str(sample)], tmp_path)
        assert (done.rc, done.text) == (0, "")
        print("epoch 2", file=log, flush=True)
    assert (tmp_path / "retrain.log.1").read_text() == "epoch 1\nepoch 2\n"
    assert not (tmp_path / "retrain.log").exists()


def test_the_ready_made_runs_are_still_those_of_the_yaml_files() -> None:
    assert config.ready_made_folder() == CONFIG
    assert {file.suffix for file in CONFIG.iterdir() if file.is_file()} >= {".yaml", ".cfg"}
    for file in CONFIG.glob("*.yaml"):
        config.load(file)
