"""The launcher: arguments put before a training's command to run it elsewhere (Slurm's `srun`, a container, `ssh`).

It must pass through standard input, standard output and the exit status, and see the workspace under the same path.
Everything else travels in the request and the command line: some launchers drop the environment and open files.
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

#: Variables meant for the parent or another program that would break a training: PYTHONOPTIMIZE drops the docstrings
#: that MXNet reads; with the DMLC_ROLE of another cluster, importing MXNet blocks for ever.
DROPPED = ("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "DMLC_ROLE")

#: The DMLC_* variables that users may set, to choose a host's address. All others are set here for each role.
KEPT = ("DMLC_NODE_HOST", "DMLC_INTERFACE")

#: The options of ssh that take a value (OpenSSH 9).
SSH_VALUE_OPTIONS = "BbcDEeFIiJLlmOoPpQRSWw"


def clean_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Drop the variables that a stage's process, or a role of a distributed training, must not inherit."""
    return {
        name: value
        for name, value in inherited.items()
        if name in KEPT or not (name in DROPPED or name.startswith("DMLC_"))
    }


def command_line(launcher: Sequence[str], command: Sequence[str], workspace: Path, package: Path) -> list[str]:
    """Put `launcher` in front of `command`, which is `[python, start.py, module]`.

    Expands `{workspace}` and `{package}`, the folder of the `pipeline` package. If the launcher's last argument is a
    Python (`/opt/conda/bin/python`), that interpreter runs the training and must find the package itself; otherwise
    this one does, from a shared file system. Raises `StageFailed` if the launcher is not installed.
    """
    host = _ssh_host_index(launcher)
    folders = {"workspace": str(workspace), "package": str(package)}
    words = [_expand(word, folders, remote=host is not None and i > host) for i, word in enumerate(launcher)]
    if shutil.which(words[0]) is None:
        raise StageFailed(
            f"launcher: program {words[0]!r} not found: install it, or remove launcher from the configuration"
        )
    # ssh and containers start with an environment of their own. The node decides about OMP_NUM_THREADS.
    env = ["env", *(word for name in DROPPED for word in ("-u", name)), "PYTHONUNBUFFERED=1"]
    if re.fullmatch(r"python[\d.]*", os.path.basename(words[-1])) and len(words) > 1:
        command = [words.pop(), "-c", start.CODE, *command[2:]]
    elif "PYTHONPATH" in os.environ:
        env.append(f"PYTHONPATH={os.environ['PYTHONPATH']}")
    command = [*env, *command]
    if host is not None:
        command = [shlex.quote(word) for word in command]
    return [sys.executable, "-I", "-S", str(package / "process" / "guard.py"), str(os.getpid()), *words, *command]


def _ssh_host_index(words: Sequence[str]) -> int | None:
    """Index of the host in an ssh launcher, else None. ssh passes everything after it to a remote shell."""
    if os.path.basename(words[0]) != "ssh":
        return None
    index = 1
    while index < len(words) and words[index].startswith("-"):
        # An option's value is the rest of the word, or else the next word.
        index += 2 if re.fullmatch(f"-[^{SSH_VALUE_OPTIONS}]*[{SSH_VALUE_OPTIONS}]", words[index]) else 1
    return index


def _expand(word: str, folders: Mapping[str, str], remote: bool) -> str:
    """Expand the folder names in `word`, quoted for a `remote` shell unless the user has quoted them."""
    for name, folder in folders.items():
        if remote:
            quoted = shlex.quote(folder).replace("\\", r"\\")
            word = re.sub(rf"(?<!['\"])\{{{name}\}}", quoted, word)
        word = word.replace(f"{{{name}}}", folder)
    return word
