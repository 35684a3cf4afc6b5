"""What is put in front of a training's command so that it runs elsewhere: Slurm's `srun`, a container, `ssh`.

A list of arguments from the configuration. Whatever it starts must pass standard input, output and the exit status
through, and see the workspace under the same path. Environment and open files do not travel with every launcher:
the request on standard input and the command line carry all that the training needs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import start
from pipeline.errors import StageFailed

#: Variables that are for the parent, or for another program, and would change or stop a training: optimised, Python
#: drops the docstrings that MXNet reads; with a role in somebody else's cluster MXNet serves that and never returns.
FOREIGN = ("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "DMLC_ROLE")

#: The rest of DMLC_* is set here for each role; by which address a host is reached is for the user to say.
KEPT = ("DMLC_NODE_HOST", "DMLC_INTERFACE")

#: The options of ssh that have a value (OpenSSH 9).
SSH_VALUES = "BbcDEeFIiJLlmOoPpQRSWw"


def own_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a stage's process, or a role of a distributed training, keeps of an environment."""
    return {
        name: value
        for name, value in inherited.items()
        if name in KEPT or not (name in FOREIGN or name.startswith("DMLC_"))
    }


def command_line(launcher: Sequence[str], command: Sequence[str], workspace: Path, package: Path) -> list[str]:
    """The whole command; `command` is `[python, start.py, module]`, `package` the folder of the `pipeline` package.

    In the launcher `{workspace}` and `{package}` stand for these folders. A launcher whose last argument is a Python
    (`python3`, `/opt/conda/bin/python`) brings its own interpreter and finds the package by its own means; else this
    interpreter is taken, from a file system that both sides share. Raises `StageFailed` for an unknown program.
    """
    host = _ssh_host(launcher)
    folders = {"workspace": str(workspace), "package": str(package)}
    words = [_filled(word, folders, far=host is not None and place > host) for place, word in enumerate(launcher)]
    if shutil.which(words[0]) is None:
        raise StageFailed(
            f"launcher: there is no program {words[0]!r} here: install it, or take launcher out of the configuration"
        )
    # An ssh or a container starts with an environment of its own. OMP_NUM_THREADS is for the node to decide.
    setting = ["env", *(word for name in FOREIGN for word in ("-u", name)), "PYTHONUNBUFFERED=1"]
    if re.fullmatch(r"python[\d.]*", os.path.basename(words[-1])) and len(words) > 1:
        command = [words.pop(), "-c", start.CODE, *command[2:]]
    elif "PYTHONPATH" in os.environ:
        setting.append(f"PYTHONPATH={os.environ['PYTHONPATH']}")
    command = [*setting, *command]
    if host is not None:
        command = [shlex.quote(word) for word in command]
    return [sys.executable, "-I", "-S", str(package / "process" / "guard.py"), str(os.getpid()), *words, *command]


def _ssh_host(words: Sequence[str]) -> int | None:
    """The place of ssh's host in the launcher, or None; what comes after it, ssh hands to a shell as one string."""
    if os.path.basename(words[0]) != "ssh":
        return None
    place = 1
    while place < len(words) and words[place].startswith("-"):
        # The value of an option is in the same word, or else in the next one.
        place += 2 if re.fullmatch(f"-[^{SSH_VALUES}]*[{SSH_VALUES}]", words[place]) else 1
    return place


def _filled(word: str, folders: Mapping[str, str], far: bool) -> str:
    """The word with its folders, quoted where a shell at the `far` end reads it and they are not quoted already."""
    for name, folder in folders.items():
        if far:
            quoted = shlex.quote(folder).replace("\\", r"\\")
            word = re.sub(rf"(?<!['\"])\{{{name}\}}", quoted, word)
        word = word.replace(f"{{{name}}}", folder)
    return word
