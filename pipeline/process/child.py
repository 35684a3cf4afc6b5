"""The child's side of a stage: every stage runs in a process of its own, `python -m pipeline.<stage>`.

Reads one JSON request (a line on standard input) and then commands, a word a line. Writes one JSON object a line to
standard output; everything that libraries print goes to standard error, which is the stage's log. The end of
standard input means that the parent is gone: the stage then stops as on SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import config as configuration
from pipeline.errors import Interrupted, PipelineError, from_os_error
from pipeline.process.liveness import PARENT_TIMEOUT, start_heartbeats
from pipeline.process.reporter import COMMANDS, Reporter
from pipeline.text import cause
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain

#: Seconds that a stage has to stop by itself after it was asked to, before its process ends hard.
GRACE_SECONDS = 9.5

EXIT_FAILED, EXIT_INTERRUPTED = 1, 3

#: The argument of a process that is started before there is work for it.
EARLY = "--early"

#: How long a training waits for the last process of one that lost its parent.
LOCK_SECONDS = PARENT_TIMEOUT + GRACE_SECONDS + 15


def request(chain: Chain, stage: str, **options: Any) -> dict[str, Any]:
    """What a parent has to send so that `chain_of` gives the same chain in the stage's process.

    How many classes there are is what the stage `dataset` finds out; for all others it is settled here.
    """
    return {
        "workspace": str(chain.workspace.root.absolute()),
        "config": configuration.to_dict(chain.given if stage == "dataset" else chain.config),
        "generation": chain.generation,
        "options": options,
    }


def chain_of(value: dict[str, Any]) -> Chain:
    """The chain that a request names."""
    return Chain(
        Workspace(Path(value["workspace"])), configuration.from_dict(value["config"]), value.get("generation", "")
    )


def main(
    work: Callable[[Chain, Reporter, dict[str, Any]], dict[str, Any] | None],
    graceful: bool = False,
    imports: Callable[[], object] = lambda: None,
) -> int:
    """Run `work(chain, reporter, options)` as a stage's process; gives the exit status.

    With `graceful`, `work` watches `reporter.stopping` and ends itself in time; otherwise being asked to stop raises
    `Interrupted` in the main thread wherever it is. `imports` loads what `work` needs, before there is work.
    """
    # Whatever a library prints to standard output belongs into the log, not between the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reporter = Reporter(events)
    _install_signals(reporter, graceful)
    value = None
    try:
        if EARLY in sys.argv:
            _wait_for_work(imports)
        value = json.loads(sys.stdin.readline() or "null")
        if value is None:
            return EXIT_INTERRUPTED
        threading.Thread(target=_listen, args=(reporter, value.get("watchdog_seconds", 0)), daemon=True).start()
        if "heartbeat_seconds" in value:
            start_heartbeats(reporter, value["heartbeat_seconds"])
        result = work(chain_of(value), reporter, value.get("options", {}))
        reporter.send("result", value=result or {})
        return 0
    except PipelineError as error:
        return _fail(reporter, error)
    except OSError as error:
        _log_traceback()
        return _fail(reporter, from_os_error(error, "read or write it"))
    except MemoryError:
        _log_traceback()
        return _fail(
            reporter, PipelineError(f"out of memory: {'lower training.batch_size or ' * graceful}free some memory")
        )
    except Exception as error:  # the cause stays in the log, the parent names it
        _log_traceback()
        if value and _is_full(Path(value["workspace"])):  # MXNet and ONNX have words of their own for it
            return _fail(reporter, from_os_error(OSError(errno.ENOSPC, "", value["workspace"]), "write into it"))
        reporter.send("error", type="Unexpected", message=f"{type(error).__name__}: {cause(error)}")
        return EXIT_FAILED


def _wait_for_work(imports: Callable[[], object]) -> None:
    """Load what the work will need, then wait for the parent to hand over the log and the locks of the stage."""
    with contextlib.suppress(PipelineError):  # it is raised again, and told, when there is work
        imports()
    with socket.socket(fileno=os.dup(0)) as channel:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 16)
    if descriptors:
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[0], 2)
        os.close(descriptors[0])


def exit_with(status: int) -> None:
    """End the process at once after flushing: MXNet's own shutdown can hang or crash, and has nothing to save."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def _log_traceback() -> None:
    with contextlib.suppress(OSError, ValueError):  # the log can be on the disk that is full
        traceback.print_exc()


def _is_full(workspace: Path) -> bool:
    try:
        return os.statvfs(workspace).f_bavail * os.statvfs(workspace).f_frsize < 1 << 20
    except OSError:
        return False


def _fail(reporter: Reporter, error: PipelineError) -> int:
    reporter.write(str(error))
    reporter.send("error", type=type(error).__name__, message=str(error))  # which the parent shows
    return EXIT_INTERRUPTED if isinstance(error, Interrupted) else EXIT_FAILED


def _install_signals(reporter: Reporter, graceful: bool) -> None:
    asked, ask = os.pipe()

    def end() -> None:
        os.read(asked, 1)
        time.sleep(GRACE_SECONDS)
        os._exit(EXIT_INTERRUPTED)

    def stop(number: int, frame: Any) -> None:
        first = not reporter.stopping
        reporter.commands.add("stop")
        if first:
            # No thread is started in here: there may be no room for one, or a lock of threading's own may be held.
            os.write(ask, b".")
            if not graceful:
                raise Interrupted("stopped on request; run the same command again to resume")

    # Whatever blocks the main thread (a stuck device, a dead disk), the process ends.
    threading.Thread(target=end, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, stop)


def _listen(reporter: Reporter, watchdog_seconds: float) -> None:
    """Take commands from standard input. Its end, or no heartbeat for too long, means that the parent is gone."""
    signal.setitimer(signal.ITIMER_REAL, watchdog_seconds)  # 0 for no heartbeats
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, watchdog_seconds)
        command = line.strip()
        if command == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif command == "kill":
            os._exit(EXIT_INTERRUPTED)
        elif command in COMMANDS:
            reporter.commands.add(command)
        elif command.startswith("{"):
            reporter.broadcasts.put(command)
    os.kill(os.getpid(), signal.SIGTERM)
