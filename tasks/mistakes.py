"""Mistakes on the command line and in luigi.cfg, reported in one line each where Luigi would raise a traceback."""

from __future__ import annotations

import configparser
import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import LuigiConfigParser, get_config
from luigi.configuration.cfg_parser import InterpolationMissingEnvvarError
from luigi.interface import core
from luigi.notifications import email, sendgrid, smtp
from luigi.parameter import Parameter, ParameterException
from luigi.retcodes import retcode
from luigi.scheduler import scheduler
from luigi.task_register import Register, TaskClassAmbigiousException, TaskClassException, TaskClassNotFoundException
from luigi.worker import worker

from tasks.settings import vgg

#: What each type of parameter expects.
_EXPECTED: dict[type[Parameter[Any]], str] = {
    luigi.IntParameter: "a whole number",
    luigi.FloatParameter: "a number",
    luigi.BoolParameter: "true or false",
    luigi.DateParameter: "a date as 2026-11-25",
    luigi.DictParameter: "a JSON object",
}

_EXIT_CODE = "a whole number from 0 to 255"

#: Sections for luigid or for e-mail, not checked by every command: a password in them may be an environment variable
#: that only one process has. Doctor checks the names of their options.
_OF_LUIGID = ("task_history", "email", "smtp", "sendgrid")

#: Options of [core] that Luigi's RPC client reads without declaring them.
_OF_THE_CLIENT = ("rpc_connect_timeout", "rpc_retry_attempts", "rpc_retry_wait", "rpc_log_retries")


# --- on the command line ----------------------------------------------------------------------------------------------


def check_command_line(parser: CmdlineParser) -> str | None:
    """Describe the first value on the command line that Luigi cannot parse; None if it can parse all."""
    given, root = parser.known_args, parser._get_task_cls()
    values = [(name, parameter, name) for name, parameter in root.get_params()]
    for family, is_without_family, name, parameter in Register.get_all_params():
        flag = name if is_without_family else f"{family}_{name}"
        values.append((flag, parameter, parameter._parser_global_dest(name, family)))
    for flag, parameter, destination in values:
        value = getattr(given, destination, None)
        try:
            parameter._parse_or_no_value(value)
        except Exception as error:  # whatever a parameter's own parser raises
            return f"{_flag(flag)}: {_bad_value(value, parameter, error)}"
    problem = _missing_file(given.core_logging_conf_file)
    return f"--logging-conf-file: {problem}" if problem else None


def check_return_codes(parser: CmdlineParser) -> str | None:
    """Describe the first `--retcode-…` that is no exit code, or return None. Luigi reads them before the task."""
    for name, _ in retcode.get_params():
        value = getattr(parser.known_args, f"retcode_{name}", None)
        if value is not None and not (re.fullmatch(r"[0-9]{1,3}", value) and int(value) <= 255):
            return f"{_flag(f'retcode_{name}')}: found {value!r}, expected {_EXIT_CODE}"
    return None


def explain(error: TaskClassException | ParameterException) -> str:
    """Reword Luigi's error about an unknown or ambiguous task, or about a parameter."""
    text = str(error)
    if isinstance(error, TaskClassAmbigiousException):
        return _ambiguous(text.split("'")[1])
    if isinstance(error, TaskClassNotFoundException):
        return _unknown_task(text.split()[2].rstrip("."))
    if missing := re.match(r"([\w.]+)\[.*requires the '(\w+)' parameter", text):
        family, name = missing.groups()
        parameter = dict(Register.get_task_cls(family).get_params())[name]
        description = (parameter.description or "").partition(" Choices: ")[0]  # Luigi adds them in random order
        if isinstance(parameter, luigi.ChoiceParameter):
            description += f"; one of {', '.join(sorted(parameter._choices))}"
        return f"{family}: {_flag(name)} is missing" + (f": {description}" if description else "")
    return text


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _bad_value(value: object, parameter: Parameter[Any] | None, error: Exception) -> str:
    if isinstance(error, (TaskClassException, ParameterException)):
        return explain(error)
    if isinstance(parameter, luigi.ChoiceParameter):
        choices = sorted(map(str, parameter._choices))
        expected = f"one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
    else:
        expected = next((words for kind, words in _EXPECTED.items() if isinstance(parameter, kind)), "")
    return f"found {str(value)!r}, expected {expected}" if expected else f"found {str(value)!r}: {error}"


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Return ` (did you mean …?)`, or an empty string if no known word is similar."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, 1, likeness)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


def _unknown_task(name: str) -> str:
    known = sys.modules["tasks"].__all__
    return f"unknown task {name}{did_you_mean(name, known)}; available: {', '.join(known)}"


def _ambiguous(name: str) -> str:
    places = sorted({f"{cls.__module__}.{cls.__name__}" for cls in Register._reg if cls.get_task_family() == name})
    return f"{name} is ambiguous ({', '.join(places)}): set task_namespace = 'mine' in yours and call it mine.{name}"


# --- in luigi.cfg -----------------------------------------------------------------------------------------------------


def contents() -> dict[str, dict[str, Any]]:
    """The sections and options of luigi.cfg (or luigi.toml), not interpolated."""
    config: Any = get_config()
    if isinstance(config, LuigiConfigParser):
        common = config.defaults()
        return {
            section: {option: value for option, value in config.items(section, raw=True) if option not in common}
            for section in config.sections()
        }
    return {section: dict(options) for section, options in config.data.items()}


def files() -> str:
    """The files that Luigi read; the last one wins."""
    existing = filter(os.path.isfile, get_config()._config_paths)
    return ", then ".join(dict.fromkeys(map(os.path.realpath, existing)))


def known_options() -> dict[str, dict[str, Parameter[Any] | None]]:
    """The options of all known sections: some of Luigi's, `[vgg]`, and one per task of this plugin.

    Includes deprecated names and sections. The parameter is None for options that Luigi does not declare.
    """
    package = sys.modules["tasks"]
    tasks = [getattr(package, name) for name in package.__all__]
    known: dict[str, dict[str, Parameter[Any] | None]] = {
        "core": dict.fromkeys((*core.ignore_unconsumed, *_OF_THE_CLIENT)),
        "task_history": {"db_connection": None},
    }
    for cls in (core, worker, scheduler, retcode, email, smtp, sendgrid, vgg, *tasks):
        for name, parameter in cls.get_params():
            old = getattr(parameter, "_config_path", None) or {"section": cls.__name__, "name": name}
            known.setdefault(cls.__name__, {})[name] = parameter
            known.setdefault(old["section"], {})[old["name"].replace("-", "_")] = parameter
    return known


def check_luigi_cfg() -> Iterator[str]:
    """Describe what Luigi or this plugin cannot parse in luigi.cfg. Skips `_OF_LUIGID`."""
    sections = {**known_options(), "resources": {}}
    for section, options in contents().items():
        for option, value in options.items() if section in sections and section not in _OF_LUIGID else ():
            if problem := _problem(section, option, value, sections[section].get(option.replace("-", "_"))):
                yield f"{files()}: [{section}] {option}: {problem}"


def _problem(section: str, option: str, written: object, parameter: Parameter[Any] | None) -> str | None:
    comment = "; put comments on their own line" if re.search(r"\s[;#]", str(written)) else ""
    try:
        value = get_config().get(section, option)
    except InterpolationMissingEnvvarError:
        return f"found {written!r}, but there is no such environment variable"
    except configparser.Error:
        return f"found {written!r}: a % must be written %%"
    try:
        if parameter is not None:
            parameter.parse(value)
        if section == "retcode" and not 0 <= int(value) <= 255:
            return f"found {value!r}, expected {_EXIT_CODE}"
        if section == "resources":
            int(value)
    except Exception as error:  # whatever a parameter's own parser raises
        return _bad_value(value, luigi.IntParameter() if section == "resources" else parameter, error) + comment
    return _missing_file(value) if (section, option) == ("core", "logging_conf_file") else None


def _missing_file(path: str | None) -> str | None:
    return f"found {path!r}, which is not a file" if path and not os.path.isfile(path) else None
