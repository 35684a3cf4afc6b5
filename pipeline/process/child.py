"""The child's side of a stage, which runs in its own process: `python -m pipeline.<stage>`.

Reads one JSON request from standard input, then commands, one word per line; at end of file, the parent is gone, and
the stage stops as on SIGTERM. Writes one JSON event per line to standard output, and the log to standard error.
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

#: Seconds a stage has to stop on request before its process exits regardless.
GRACE_SECONDS = 9.5

EXIT_FAILED, EXIT_INTERRUPTED = 1, 3

#: Argument of a process that is started before there is work for it.
EARLY = "--early"

#: How long a training waits for the last process of an earlier one that lost its parent.
LOCK_SECONDS = PARENT_TIMEOUT + GRACE_SECONDS + 15


def request(chain: Chain, stage: str, **options: Any) -> dict[str, Any]:
    """Build the request from which `chain_from` restores `chain` in the stage's process.

    The stage `dataset` determines the number of classes; every other stage gets it from here.
    """
    return {
        "workspace": str(chain.workspace.root.absolute()),
        "config": configuration.to_dict(chain.given if stage == "dataset" else chain.config),
        "generation": chain.generation,
        "options": options,
    }


def chain_from(message: dict[str, Any]) -> Chain:
    """Restore the chain from a request."""
    config = configuration.from_dict(message["config"])
    return Chain(Workspace(Path(message["workspace"])), config, message.get("generation", ""))


def main(
    work: Callable[[Chain, Reporter, dict[str, Any]], dict[str, Any] | None],
    graceful: bool = False,
    imports: Callable[[], object] = lambda: None,
) -> int:
    """Run `work(chain, reporter, options)` as a stage's process and return the exit status.

    With `graceful`, `work` polls `reporter.stopping` and returns in time; otherwise a stop request raises
    `Interrupted` in the main thread. `imports` preloads what `work` needs while there is no work yet.
    """
    # Library output on stdout belongs in the log, not between the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reporter = Reporter(events)
    _install_signals(reporter, graceful)
    message = None
    try:
        if EARLY in sys.argv:
            _wait_for_work(imports)
        message = json.loads(sys.stdin.readline() or "null")
        if message is None:
            return EXIT_INTERRUPTED
        threading.Thread(target=_listen, args=(reporter, message.get("watchdog_seconds", 0)), daemon=True).start()
        if "heartbeat_seconds" in message:
            start_heartbeats(reporter, message["heartbeat_seconds"])
        result = work(chain_from(message), reporter, message.get("options", {}))
        reporter.send("result", value=result or {})
        return 0
    except PipelineError as error:
        return _fail(reporter, error)
    except OSError as error:
        _log_traceback()
        return _fail(reporter, from_os_error(error, "read or write it"))
    except MemoryError:
        _log_traceback()
        advice = "lower training.batch_size or free some memory" if graceful else "free some memory"
        return _fail(reporter, PipelineError(f"out of memory: {advice}"))
    except Exception as error:  # the log gets the traceback, the parent only the cause
        _log_traceback()
        if message and _is_full(Path(message["workspace"])):  # MXNet and ONNX raise errors of their own for it
            return _fail(reporter, from_os_error(OSError(errno.ENOSPC, "", message["workspace"]), "write into it"))
        reporter.send("error", type="Unexpected", message=f"{type(error).__name__}: {cause(error)}")
        return EXIT_FAILED


def _wait_for_work(imports: Callable[[], object]) -> None:
    """Run the imports, then wait for the parent to pass the file descriptors of the stage's log and locks."""
    with contextlib.suppress(PipelineError):  # raised again, and reported, once there is work
        imports()
    with socket.socket(fileno=os.dup(0)) as channel:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 16)
    if descriptors:
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[0], 2)
        os.close(descriptors[0])


def exit_with(status: int) -> None:
    """Flush and exit immediately: MXNet's own shutdown can hang or crash, and has nothing to save."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def _log_traceback() -> None:
    with contextlib.suppress(OSError, ValueError):  # the log may be on the full disk
        traceback.print_exc()


def _is_full(workspace: Path) -> bool:
    try:
        status = os.statvfs(workspace)
        return status.f_bavail * status.f_frsize < 1 << 20
    except OSError:
        return False


def _fail(reporter: Reporter, error: PipelineError) -> int:
    reporter.write(str(error))
    reporter.send("error", type=type(error).__name__, message=str(error))
    return EXIT_INTERRUPTED if isinstance(error, Interrupted) else EXIT_FAILED


def _install_signals(reporter: Reporter, graceful: bool) -> None:
    wakeup_read, wakeup_write = os.pipe()

    def exit_after_grace_period() -> None:
        os.read(wakeup_read, 1)
        time.sleep(GRACE_SECONDS)
        os._exit(EXIT_INTERRUPTED)

    def stop(number: int, frame: Any) -> None:
        first = not reporter.stopping
        reporter.commands.add("stop")
        if first:
            # Do not start a thread here: the process limit may be reached, or one of threading's locks may be held.
            os.write(wakeup_write, b".")
            if not graceful:
                raise Interrupted("stopped on request; run the same command again to resume")

    # Exit even if a stuck device or a dead disk blocks the main thread.
    threading.Thread(target=exit_after_grace_period, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, stop)


def _listen(reporter: Reporter, watchdog_seconds: float) -> None:
    """Read commands from standard input. End of file, or no line for `watchdog_seconds`, means a dead parent."""
    signal.setitimer(signal.ITIMER_REAL, watchdog_seconds)  # 0 disables the watchdog
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
