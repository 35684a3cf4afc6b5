"""Runs a real luigid on a free port, and queries it."""

from __future__ import annotations

import contextlib
import html
import json
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from luigi_runs import TIMEOUT, clean_environment, free_port

Found = TypeVar("Found")


def wait_for(question: Callable[[], Found | None], what: str) -> Found:
    """Poll until the answer is true, and return it. Fails after `TIMEOUT` seconds."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        answer = question()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited {TIMEOUT:.0f} s in vain for {what}")


class Luigid:
    """A running luigid. `api` calls its RPC interface directly, without Luigi's or this plugin's client."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "luigid.txt"
        command = [str(Path(sys.executable).with_name("luigid")), "--address", "127.0.0.1", "--port", str(self.port)]
        command += [] if environment else ["--state-path", str(folder / "state.pickle")]
        self._command, self._environment = command, clean_environment(**environment)
        self._start()

    def _start(self) -> None:
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                self._command, stdout=output, stderr=output, cwd=self.folder, env=self._environment
            )

    def restart(self) -> None:
        """Kill it, so that it loses its state, and start it again at the same address."""
        self.process.kill()
        self.process.wait()
        self._start()
        wait_for(self.answers, "luigid")

    @property
    def scheduler(self) -> tuple[str, ...]:
        """Arguments that make the `luigi` command use it."""
        return ("--scheduler-url", self.url)

    def get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/{path}", timeout=TIMEOUT) as answer:
            return answer.read()

    def api(self, method: str, **arguments: Any) -> Any:
        given = urllib.parse.urlencode({"data": json.dumps(arguments)})
        return json.loads(self.get(f"api/{method}?{given}"))["response"]

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return bool(self.get(""))
        return False

    def running(self, family: str) -> dict[str, Any] | None:
        """The running task of a family: `task_id`, `worker`, `params` and so on."""
        tasks = self.api("task_list", status="RUNNING", upstream_status="")
        for task_id, task in tasks.items():
            if task["name"] == family:
                return {"task_id": task_id, "worker": task["worker_running"], **task}
        return None

    def message(self, task_id: str) -> str:
        return html.unescape(self.api("get_task_status_message", task_id=task_id)["statusMessage"] or "")

    def progress(self, task_id: str) -> int:
        return self.api("get_task_progress_percentage", task_id=task_id)["progressPercentage"] or 0

    def send_message(self, task: dict[str, Any], content: str) -> str:
        """Send a message to a running task, and return its reply."""
        given = {"worker": task["worker"], "task": task["task_id"], "content": content}
        number = self.api("send_scheduler_message", **given)["message_id"]

        def reply() -> str | None:
            message = {"task_id": task["task_id"], "message_id": number}
            return self.api("get_scheduler_message_response", **message)["response"]

        return wait_for(reply, f"a reply to {content!r}")

    def stop(self) -> None:
        """Stop it gracefully. luigid loses a SIGTERM that arrives while it writes to its log, so try repeatedly."""
        try:
            wait_for(self._terminated, "the end of luigid")
        finally:
            self.process.kill()
            self.process.wait()

    def _terminated(self) -> bool:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        return self.process.returncode is not None


@contextlib.contextmanager
def luigid(folder: Path, **environment: str) -> Iterator[Luigid]:
    """A luigid that keeps its state in `folder`; with an environment, where its luigi.cfg says."""
    folder.mkdir(parents=True, exist_ok=True)
    process = Luigid(folder, **environment)
    try:
        wait_for(process.answers, "luigid")
        yield process
    finally:
        process.stop()
