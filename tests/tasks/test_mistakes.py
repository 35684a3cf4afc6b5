"""Mistakes on the command line and in luigi.cfg: one line says where, what was found, and what to write instead."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import luigi
import pytest
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import LuigiConfigParser
from luigi.parameter import ParameterException
from luigi.task_register import TaskClassException
from luigi_runs import SmallChain, clean_environment, luigi_command, run

import tasks
from pipeline.errors import ConfigError
from tasks import doctor, mistakes


def _complaint(arguments: list[str]) -> str | None:
    """The error message for these arguments; None if they are valid."""
    try:
        with CmdlineParser.global_instance([*arguments, "--local-scheduler"]) as parser:
            problem = mistakes.check_command_line(parser)
            if problem is None:
                parser.get_task_obj()
            return problem
    except (ParameterException, TaskClassException) as error:
        return mistakes.explain(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("NoSuchTask", ["unknown task NoSuchTask; available: Compare, Doctor"]),
        ("report", ["unknown task report (did you mean Report?); available: Compare"]),
        (
            "SetAside --stage traain",
            ["--stage: found 'traain'", "dataset, evaluate, export, report, train (did you mean train?)"],
        ),
        ("SetAside", ["SetAside: --stage is missing", "e.g. train"]),
        ("Compare", ["Compare: --configs is missing", "e.g. config/vgg11.yaml,"]),
        ("Prune --keep many", ["--keep: found 'many', expected a whole number"]),
        ("Report --Prune-keep many", ["--Prune-keep: found 'many', expected a whole number"]),
        ("Retrain --date tomorrow", ["--date: found 'tomorrow', expected a date as 2026-11-25"]),
        ("Report --workers two", ["--workers: found 'two', expected a whole number"]),
        ("Report --vgg-overlap never", ["--vgg-overlap: found 'never', expected one of leave, wait"]),
        ("Report --vgg-stale-seconds long", ["--vgg-stale-seconds: found 'long', expected a number"]),
        ("Report --logging-conf-file nowhere.conf", ["--logging-conf-file: found 'nowhere.conf', which is not a file"]),
        ("RangeDaily", ["RangeDaily: --of is missing"]),
        ("RangeDaily --of Retrian", ["--of: unknown task Retrian (did you mean Retrain?)"]),
        ("RangeDaily --of Retrain --start May", ["--start: found 'May', expected a date"]),
        ("RangeDaily --of Retrain --of-params config", ["--of-params: found 'config', expected a JSON object"]),
    ],
)
def test_a_mistake_on_the_command_line_is_reported(arguments: str, words: list[str]) -> None:
    line = _complaint(arguments.split())
    assert line is not None
    assert all(word in line for word in words), line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["NoSuchTask"], 2, "unknown task NoSuchTask"),
        (["SetAside", "--stage", "traain"], 2, "--stage: found 'traain'"),
        (["Compare"], 2, "--configs is missing"),
        (["Compare", "--configs", ","], 2, "--configs: found ',', expected at least one path"),
        (["Verify", "--worker-wait-interval", "0"], 2, "[worker] wait_interval must be positive"),
        (["Verify", "--workers", "0"], 2, "--workers: found 0, expected at least 1"),
        (["Rollback"], 30, "nothing to roll back"),
        (["Retire", "--name", "cifar10/vgg12"], 30, "--name cifar10/vgg12: no model is current under this name"),
        (["Prune", "--keep", "0"], 2, "--keep: found 0, expected at least 1"),
        (["Prune", "--older-than", "30"], 2, "--older-than: found 0:00:30, expected 1d to 36500d, e.g. 30d"),
        (["Report", "--workspace", "$NO_SUCH_FOLDER/vgg"], 2, "no such environment variable as $NO_SUCH_FOLDER"),
        (["Report", "--workspace", "s3://u:p$SEC_ret@b/x"], 2, "--workspace: found s3://b/x, but the variable behind"),
        (
            ["Verify", "--retcode-task-failed", "256"],
            2,
            "--retcode-task-failed: found '256', expected a whole number from 0",
        ),
        (
            ["Verify", "--retcode-not-run", "x"],
            2,
            "--retcode-not-run: found 'x', expected a whole number from 0 to 255",
        ),
        (["Report", "--workspace", "s4://bucket/vgg"], 2, "--workspace s4://bucket/vgg: unknown scheme s4://"),
    ],
)
def test_the_command_ends_with_that_one_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    result = run([*luigi_command(), "--module", "tasks", *arguments], tmp_path)
    assert (result.rc, result.output) == (code, ""), result.text
    lines = result.log.splitlines()
    assert len(lines) == 1, result.log
    assert words in lines[0]


def test_a_reversed_range_of_days_is_reported_without_a_traceback(tmp_path: Path) -> None:
    days = ["--start", "2026-11-02", "--stop", "2026-11-01"]
    command = [*luigi_command(), "RangeDaily", "--module", "tasks", "--of", "Retrain", *days, "--local-scheduler"]
    result = run(command, tmp_path)
    assert result.rc == 35
    assert "Can't have start > stop" in result.log
    assert "Traceback" not in result.log


def test_two_tasks_of_one_name_are_reported_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import luigi, tasks\nclass Report(luigi.Task):\n    pass\n")
    environment = clean_environment()
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    result = run([*luigi_command(), "--module", "mine", "Report", "--local-scheduler"], tmp_path, environment)
    assert result.rc == 2, result.text
    assert "Report is ambiguous (mine.Report, tasks.stages.Report)" in result.log
    assert "task_namespace" in result.log
    assert "Traceback" not in result.log
    assert len(result.log.splitlines()) == 1, result.log


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tasks.__all__)
def test_help_gives_default_and_example_and_hides_internal_parameters(family: str) -> None:
    for name, parameter in getattr(tasks, family).get_params():
        text = parameter.description
        if name in ("architecture", "dataset", "settings"):
            assert text == argparse.SUPPRESS
        elif isinstance(parameter, luigi.BoolParameter):
            assert "default: " in text, name
        else:
            assert "%" not in text, "argparse formats it"
            assert "e.g. " in text, name
            assert "default: " in text or "no default" in text, name


# --- luigi.cfg --------------------------------------------------------------------------------------------------------


@pytest.fixture
def luigi_cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write the given text to luigi.cfg, and let Luigi read only that file."""

    def make(text: str) -> Path:
        path = tmp_path / "luigi.cfg"
        path.write_text(text)
        parser = LuigiConfigParser()
        parser.read([str(path)])
        monkeypatch.setattr(LuigiConfigParser, "_config_paths", [str(path)])
        monkeypatch.setattr(LuigiConfigParser, "_instance", parser)
        return path

    return make


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[vgg]\nlauncher = srun --x=%j\n", ["[vgg] launcher: found 'srun --x=%j'", "a % must be written %%"]),
        ("[retcode]\ntask_failed = 30%\n", ["[retcode] task_failed: found '30%'", "%%"]),
        ("[core]\nlogging_conf_file = /etc/%h.conf\n", ["[core] logging_conf_file: found '/etc/%h.conf'", "%%"]),
        ("[Report]\nworkspace = /data/%u\n", ["[Report] workspace: found '/data/%u'", "%%"]),
        ("[vgg]\nworkspace = ${NO_SUCH}/vgg\n", ["[vgg] workspace: found '${NO_SUCH}/vgg'", "environment variable"]),
        (
            "[core]\nlogging_conf_file = nowhere.conf\n",
            ["[core] logging_conf_file: found 'nowhere.conf', which is not a file"],
        ),
        ("[retcode]\ntask_failed = 30 ; bad\n", ["[retcode] task_failed: found '30 ; bad'", "their own line"]),
        (
            "[retcode]\ntask_failed = 300\n",
            ["[retcode] task_failed: found '300', expected a whole number from 0 to 255"],
        ),
        ("[worker]\nkeep_alive = yes\n", ["[worker] keep_alive: found 'yes', expected true or false"]),
        ("[scheduler]\nretry_count = thrice\n", ["[scheduler] retry_count: found 'thrice', expected a whole number"]),
        ("[resources]\ngpu-node1-0 = 2 # cards\n", ["[resources] gpu-node1-0: found '2 # cards'", "their own line"]),
        ("[vgg]\noverlap = never\n", ["[vgg] overlap: found 'never', expected one of leave, wait"]),
        ("[Prune]\nkeep = all\n", ["[Prune] keep: found 'all', expected a whole number"]),
    ],
)
def test_an_unparsable_value_in_luigi_cfg_is_reported_with_its_place(
    luigi_cfg: Callable[[str], Path], text: str, words: list[str]
) -> None:
    path = luigi_cfg(text)
    (line,) = mistakes.check_luigi_cfg()
    assert line.startswith(f"{path}: ")
    assert all(word in line for word in words), line


def test_a_password_that_only_luigid_knows_does_not_stop_a_command(luigi_cfg: Callable[[str], Path]) -> None:
    luigi_cfg("[task_history]\ndb_connection = mysql://luigi:${NO_SUCH}@db/x\n[smtp]\npassword = 100%\n")
    assert list(mistakes.check_luigi_cfg()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[workers]\nkeep_alive = true\n", "unknown section [workers] (did you mean worker?)"),
        ("[Core]\nlog_level = INFO\n", "unknown section [Core] (did you mean core?)"),
        ("[report]\nworkspace = /data/vgg\n", "unknown section [report] (did you mean Report?)"),
        ("[Report]\nworkplace = /data/vgg\n", "unknown option workplace in [Report] (did you mean workspace?)"),
        ("[smtp]\nprot = 25\n", "unknown option prot in [smtp] (did you mean port?)"),
        ("[emial]\nreceiver = ops@example.org\n", "unknown section [emial] (did you mean email?)"),
        ("[retcode]\ntask_failed = 0\n", "[retcode] task_failed is 0"),
    ],
)
def test_mistakes_that_luigi_ignores_in_luigi_cfg_are_reported_by_doctor(
    luigi_cfg: Callable[[str], Path], text: str, words: str
) -> None:
    path = luigi_cfg(text)
    problems = [finding.text for finding in doctor.luigi_configuration() if not finding.ok]
    assert any(words in line and str(path) in line for line in problems), problems
    assert list(mistakes.check_luigi_cfg()) == []


def test_a_renamed_option_is_rejected_with_its_new_name(
    luigi_cfg: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    luigi_cfg("[vgg]\npatience_seconds = 60\n")
    for task in (tasks.Doctor, tasks.Report):
        with pytest.raises(ConfigError, match=r"\[vgg\] patience_seconds is now called retry_timeout: rename it"):
            task()
    assert capfd.readouterr().err == ""  # without a warning of Luigi's before it


@pytest.mark.parametrize("task", ["Report", "Doctor"])
def test_every_command_ends_with_2_and_one_line_per_mistake(tmp_path: Path, task: str) -> None:
    (tmp_path / "luigi.cfg").write_text("[vgg]\nlauncher = %j\n[retcode]\nnot_run = 1%\n[core]\nlog_level = %x\n")
    result = run([*luigi_command(), "--module", "tasks", task, "--local-scheduler"], tmp_path)
    assert (result.rc, result.output) == (2, ""), result.text
    assert [line.split(" ")[1] for line in result.log.splitlines()] == [f"{tmp_path / 'luigi.cfg'}:"] * 3


def test_numbers_in_luigi_toml_are_numbers(done: SmallChain) -> None:
    (done.cwd / "luigi.toml").write_text(f'[retcode]\ntask_failed = 77\n[vgg]\nworkspace = "{done.workspace}"\n')
    toml = {"LUIGI_CONFIG_PARSER": "toml"}
    assert done.report(**toml).ran == []
    command = [*luigi_command(), "--module", "tasks", "Rollback", "--config", str(done.config)]
    assert run(command, done.cwd, clean_environment(**toml)).rc == 77
    (done.cwd / "luigi.toml").write_text('[retcode]\ntask_failed = "many"\n[worker]\nkeep_alive = 3\n')
    result = done.luigi("Doctor", **toml)
    assert result.rc == 2, result.text
    assert f"{done.cwd}/luigi.toml: [retcode] task_failed: found 'many', expected a whole number" in result.log
    assert f"{done.cwd}/luigi.toml: [worker] keep_alive: found '3', expected true or false" in result.log


# --- workspace and configuration for all tasks -----------------------------------------------------------------------


def test_luigi_cfg_sets_workspace_and_configuration_of_all_tasks(done: SmallChain) -> None:
    home = {"HOME": str(done.root), "PLACE": done.workspace.name}
    (done.cwd / "luigi.cfg").write_text("[vgg]\nworkspace = ~/$PLACE\nconfig = $HOME/config.yaml\n")
    for task in (["Report"], ["Verify"], ["Compare", "--configs", "~/config.yaml"]):
        command = [*luigi_command(), "--module", "tasks", *task, "--local-scheduler"]
        result = run(command, done.cwd, clean_environment(**home))
        assert result.rc == 0, result.text
        assert str(done.workspace) in result.text
    assert [path.name for path in done.cwd.iterdir()] == ["luigi.cfg"]


def test_the_command_line_overrides_luigi_cfg_and_is_expanded_as_well(done: SmallChain) -> None:
    (done.cwd / "luigi.cfg").write_text("[vgg]\nworkspace = /nowhere\nconfig = nowhere.yaml\n")
    given = ["--workspace", "~/artifacts", "--config", "$HOME/config.yaml"]
    command = [*luigi_command(), "--module", "tasks", "Status", *given]
    result = run(command, done.cwd, clean_environment(HOME=str(done.root)))
    assert result.rc == 0, result.text


def test_compare_accepts_commas_as_well_as_json() -> None:
    from tasks.compare import _parse_configs, _parse_seeds

    both = ["a.yaml", "b*.yaml"]
    assert (
        _parse_configs("a.yaml,b*.yaml")
        == _parse_configs("a.yaml, b*.yaml")
        == _parse_configs('["a.yaml", "b*.yaml"]')
        == both
    )
    assert _parse_seeds("0,1") == _parse_seeds("[0, 1]") == _parse_seeds([0, 1]) == [0, 1]
