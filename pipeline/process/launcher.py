"""What is put in front of a training's command so that it runs elsewhere: Slurm's `srun`, a container, `ssh`.

A list of arguments from the configuration. Whatever it starts must pass standard input, output and the exit status
through, and see the workspace under the same path. Environment and open files do not travel with every launcher:
the request on standard input and the command line carry all that the training needs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import start
from pipeline.errors import StageFailed
from pipeline.process import child

#: Seconds without a word from the training after which it is said to be waiting for a node.
WAITING_SECONDS = 2.0

#: Variables that are for the parent, or for another program, and would change or stop a training: optimised, Python
#: drops the docstrings that MXNet reads; with a role in somebody else's cluster MXNet serves that and never returns.
FOREIGN = ("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "DMLC_ROLE")

#: The rest of DMLC_* is set here for each role; by which address a host is reached is for the user to say.
KEPT = ("DMLC_NODE_HOST", "DMLC_INTERFACE")

#: Programs that start another one, which their first word that is a program names.
STARTERS = ("chrt", "doas", "env", "ionice", "nice", "nohup", "setsid", "stdbuf", "sudo", "taskset", "time", "timeout")

#: The options of ssh that have a value (OpenSSH 9).
SSH_VALUES = "BbcDEeFIiJLlmOoPpQRSWw"

#: How long a launcher may take to end what it started. Slurm gives a job its KillWait, 30 s by default.
END_SECONDS = 45.0


def shown(launcher: Sequence[str]) -> str:
    """The launcher as one would type it, shortened."""
    text = shlex.join(launcher)
    return text if len(text) <= 80 else text[:77] + "..."


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
            f"launcher: found {shown(launcher)!r}, but there is no program {words[0]!r} here: install it, "
            "or take launcher out of the configuration"
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
    """The place of ssh's host in the launcher, or None; what comes after it, ssh hands to a shell as one string.

    ssh may have programs in front of it that do nothing but start it (`env X=1`, `timeout 99`).
    """
    place = 0
    while os.path.basename(words[place]) in STARTERS:
        programs = (number for number in range(place + 1, len(words)) if shutil.which(words[number]))
        place = next(programs, -1)
        if place < 0:
            return None
    if os.path.basename(words[place]) != "ssh":
        return None
    place += 1
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


class Watch:
    """Follows a process that gives signs of life: whether it has begun, whether it is lost, and how to end it.

    Without a launcher it runs here, and has begun from the start.
    """

    def __init__(self, launcher: Sequence[str], log: Path) -> None:
        self.launcher, self.log = launcher, log
        self.running = not launcher
        self.lost = False
        self.where = "here"
        self._started = self._spoken = self._heard = time.monotonic()
        self._told = ""
        self._ending: float | None = None
        self._offset = log.stat().st_size if log.exists() else 0

    def request(self) -> dict[str, float]:
        """What the child has to be told."""
        return {"silence_seconds": child.SILENCE_SECONDS, "beat_seconds": child.BEAT_SECONDS}

    def attend(self, event: dict[str, Any] | None, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """Take the child's signs of life out of its events; gives what to tell, or None for nothing."""
        moment = time.monotonic()
        if event is None:
            self.lost = self.lost or (self.running and moment - self._heard > child.LOST_SECONDS)
            if self.lost:
                self.end(process)
            return self._waiting(moment - self._started)
        self._heard = moment
        if event.get("event") == "hello" and not self.running:
            self.running = True
            self.where = event["host"] + (f" (Slurm job {event['job']})" if event.get("job") else "")
            return {"event": "note", "message": f"started on {self.where}"}
        return None if event.get("event") in ("hello", "beat") else event

    def due(self) -> bool:
        """True when it is time for a word to the child, so that it stays sure of its parent.

        Not before it has begun: what a queued job is told nobody reads, for days.
        """
        moment = time.monotonic()
        if not self.running or moment - self._spoken < child.BEAT_SECONDS:
            return False
        self._spoken = moment
        return True

    def _waiting(self, seconds: float) -> dict[str, Any] | None:
        if self.running or seconds < WAITING_SECONDS:
            return None
        minutes, rest = divmod(int(seconds), 60)
        message = f"waiting for a node for {minutes}:{rest:02} ({self.last_words() or self.launcher[0]})"
        if message == self._told:
            return None
        first, self._told = not self._told, message
        if first:
            return {"event": "note", "message": f"waiting for a node ({self.last_words() or self.launcher[0]})"}
        return {"event": "progress", "fraction": 0.0, "message": message}

    def last_words(self) -> str:
        """The last line that the launcher wrote to the log."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(self._offset, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def failure(self, what: str, status: int) -> StageFailed | None:
        """What went wrong with starting or keeping the process, if something did."""
        if self.lost:
            return StageFailed(
                f"{what}: no sign of life from its process on {self.where} for {child.LOST_SECONDS:.0f} s: the host is "
                "dead or cut off, or the process hangs; run the same command again to go on from the last checkpoint"
            )
        if self.running:
            return None
        said = self.last_words() or "(it said nothing)"
        return StageFailed(
            f"{what}: the launcher {shown(self.launcher)!r} ended with status {status} before the training began; "
            f"its last line: {said}; log: {self.log}"
        )

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Take a training that still waits for its node out of the queue; one that runs is asked by word."""
        if not self.running:
            self.end(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Have the launcher end what it started, at once; to be called until it has ended.

        SIGKILL would leave a job behind, so that comes last.
        """
        moment = time.monotonic()
        with contextlib.suppress(OSError):
            if not self.launcher:
                process.kill()
            elif self._ending is None:
                self._ending = moment
                process.send_signal(signal.SIGTERM if self.running else signal.SIGINT)
            elif moment - self._ending > END_SECONDS:
                process.kill()
