"""Read hostile inputs, each in a monitored fork: `hostile_reader.py KIND SANDBOX`.

Takes inputs on standard input, each preceded by its length as 8 bytes. Prints one JSON object per input on standard
output: how reading it ended, what it did, and the time and memory it took. Imports the libraries that a kind needs only
once, before the forks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds of wall clock after which a reader counts as hanging. Generous, because the machine may be busy.
SECONDS = 60

#: Address space beyond that of the imports: an allocation out of proportion to the input fails and is noticed.
ADDRESS_SPACE = 3 << 30

#: Audit events that mean that code was run or the file system was changed.
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pickle.find_class")
TOUCHES = ("os.remove", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")


class Recorder:
    """A reporter that checks every message and keeps none."""

    def progress(self, fraction: float, message: str) -> None:
        assert 0 <= fraction <= 1
        check_message(message)

    def note(self, message: str) -> None:
        check_message(message)


def check_message(message: str) -> None:
    """Fail unless a message is one line that a terminal shows as it is."""
    bad = [character for character in message if not character.isprintable()]
    assert not bad, f"not printable in a message: {bad[:5]} in {message[:300]!r}"
    assert len(message) < 3000, f"a message of {len(message)} characters: {message[:300]!r}"


# --- the readers of each kind -----------------------------------------------------------------------------------------


def small_chain(sandbox: Path, name: str, source: Path) -> Any:
    from pipeline.config import from_dict
    from pipeline.workspace import Workspace
    from pipeline.workspace.freshness import Chain

    value = {
        "data": {"name": name, "source": str(source)},
        "architecture": {"name": "tiny", "conv_arch": [[1, 4]]},
        "training": {"epochs": 1},
    }
    return Chain(Workspace(sandbox / "artifacts"), from_dict(value))


def archive(sandbox: Path) -> Callable[[bytes], None]:
    from pipeline import dataset

    path = sandbox / "in.archive"
    chain = small_chain(sandbox, "mini", path)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        dataset.prepare(chain, Recorder())

    return read


def pickled(sandbox: Path) -> Callable[[bytes], None]:
    from pipeline.dataset.layouts import Collector

    def read(content: bytes) -> None:
        collector = Collector("mine", 10)
        for name in ("data_batch_1", "test_batch", "batches.meta"):
            if collector.wants(name, len(content)):
                collector.add(name, content)
        collector.finish()

    return read


def weights(sandbox: Path) -> Callable[[bytes], None]:
    from pipeline import runtime
    from pipeline.model import weights

    runtime.mxnet()
    path = sandbox / "in.params"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        weights.read(path)

    return read


def checkpoint(sandbox: Path) -> Callable[[bytes], None]:
    from pipeline.training import checkpoint

    path = sandbox / "step-1.npz"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        checkpoint.load(path)

    return read


def onnx(sandbox: Path) -> Callable[[bytes], None]:
    import numpy as np

    from pipeline.export import onnx_runner

    path = sandbox / "model.onnx"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        model = onnx_runner.open_model(path)
        for name in model.classes:
            check_message(name)
        model.logits(np.zeros((2, 3, *model.size), np.uint8))

    return read


def image(sandbox: Path) -> Callable[[bytes], None]:
    from PIL import Image

    from pipeline import predict
    from pipeline.export import onnx_runner

    Image.init()  # or every fork would import all formats again
    path = sandbox / "in.png"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for result in predict.classify(onnx_runner.open_model(sandbox / "good.onnx"), [path]):
            if isinstance(result, predict.Unreadable):
                check_message(result.why)

    return read


def labels(sandbox: Path) -> Callable[[bytes], None]:
    import numpy as np
    from PIL import Image

    from pipeline import dataset

    folder = sandbox / "parts"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.RandomState(number).randint(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    chain = small_chain(sandbox, "parts", folder)

    def read(content: bytes) -> None:
        (folder / "labels.csv").write_bytes(content)
        for reason in chain.why("dataset"):
            check_message(reason)
        dataset.prepare(chain, Recorder())

    return read


def yaml(sandbox: Path) -> Callable[[bytes], None]:
    from pipeline import config

    path = sandbox / "in.yaml"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        config.load(path)

    return read


def workspace_file(sandbox: Path) -> Callable[[bytes], None]:
    """The first line of an input names a file of the finished workspace; the rest replaces its content."""
    from pipeline import status
    from pipeline.config import load
    from pipeline.predict import resolve_model
    from pipeline.verify import verify
    from pipeline.workspace import Workspace
    from pipeline.workspace.freshness import STAGES, Chain

    chain = Chain(Workspace(sandbox / "artifacts"), load(sandbox / "config.yaml"))

    def read(content: bytes) -> None:
        name, _, rest = content.partition(b"\n")
        path = chain.workspace.root / name.decode()
        before = path.read_bytes()
        path.write_bytes(rest)
        try:
            for stage in STAGES:
                for reason in chain.why(stage):
                    check_message(reason)
            for line in verify(chain.workspace).damaged:
                check_message(line)
            for line in status.lines(status.gather(chain), "config.yaml"):
                check_message(line)
            resolve_model(chain.workspace.root)
        finally:
            path.write_bytes(before)

    return read


def lock(sandbox: Path) -> Callable[[bytes], None]:
    from pipeline.storage.object_locks import ObjectLock
    from pipeline.storage.store import Store

    store = Store(f"file://{sandbox}/store", 1.0)
    store.write("work/locks/warm.lock", b"{}")

    def read(content: bytes) -> None:
        store.write("work/locks/x.lock", content)
        found = ObjectLock(store, "work/locks/x.lock")
        record = found.record()
        assert record is not None
        check_message(str(record))
        with found.held("train x", False, check_message):
            pass

    return read


def http(sandbox: Path) -> Callable[[bytes], None]:
    import requests  # noqa: F401 (imported before the fork)

    from pipeline.dataset import download

    for name, value in {"BACKOFF": 0.01, "TRIES": 2, "CONNECT_TIMEOUT": 2.0, "READ_TIMEOUT": 2.0}.items():
        setattr(download, name, value)

    def read(content: bytes) -> None:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(1 << 16)
                    connection.sendall(content)

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mini.tar.gz"
        download.download(
            url, sandbox / "downloads" / "in", lambda fraction, message: check_message(message), check_message
        )

    return read


KINDS = {
    "archive": archive,
    "pickle": pickled,
    "weights": weights,
    "checkpoint": checkpoint,
    "onnx": onnx,
    "image": image,
    "labels": labels,
    "yaml": yaml,
    "workspace": workspace_file,
    "lock": lock,
    "http": http,
}


# --- monitoring -----------------------------------------------------------------------------------------------------


def watch(sandbox: Path, violations: list[str]) -> None:
    """Append to `violations` whatever this process does that reading an input must not do."""
    allowed = (str(sandbox), "/dev/null", "/dev/shm", "/proc/self")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS:
            violations.append(f"{event} {arguments!r:.200}")
        elif event in TOUCHES or event == "open":
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            for path in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    whole = os.path.realpath(os.fsdecode(os.fspath(path)))
                    if not whole.startswith(allowed):
                        violations.append(f"{event} {whole:.300}")

    sys.addaudithook(hook)


def in_fork(read: Callable[[bytes], None], content: bytes, sandbox: Path) -> dict[str, Any]:
    """Read one input in a fork. Returns how that ended, and the time and memory it took."""
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(watched(read, content, sandbox, writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status, usage = os.wait4(child, 0)
    outcome = json.loads(answer) if answer else {"end": "died", "signal": os.WTERMSIG(status), "violations": []}
    return {**outcome, "seconds": time.monotonic() - started, "peak": usage.ru_maxrss * 1024}


def watched(read: Callable[[bytes], None], content: bytes, sandbox: Path, pipe: int) -> int:
    signal.alarm(SECONDS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
    violations: list[str] = []
    watch(sandbox, violations)
    from pipeline.errors import PipelineError

    outcome: dict[str, Any] = {"end": "success"}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            read(content)
    except PipelineError as error:
        outcome = {"end": "refused", "type": type(error).__name__, "message": str(error)}
    except BaseException as error:
        import traceback

        outcome = {"end": "crashed", "type": type(error).__name__, "message": traceback.format_exc()[-3000:]}
    unprintable = [line for line in errors.getvalue().splitlines() if not line.isprintable()]
    violations += [f"on standard error: {line:.300}" for line in unprintable]
    os.write(pipe, json.dumps({**outcome, "violations": violations}).encode())
    return 0


def main() -> None:
    kind, sandbox = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep what libraries print out of the answers
    read = KINDS[kind](sandbox)
    answers.write(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}) + "\n")
    answers.flush()
    while header := sys.stdin.buffer.read(8):
        content = sys.stdin.buffer.read(struct.unpack("<q", header)[0])
        answers.write(json.dumps(in_fork(read, content, sandbox)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
