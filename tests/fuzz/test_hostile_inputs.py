"""Hostile inputs of every kind, made from good ones by Hypothesis, each read in a monitored process of its own.

Five rules hold for each: no code runs, nothing outside the sandbox is touched, memory and time stay within bounds, and
reading ends with success or a one-line error. By default, each kind gets the same few inputs.
`FUZZ_EXAMPLES=20000 pytest -n 0 tests/fuzz` runs for hours, with new inputs every time.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from luigi_runs import CHECKOUT, SmallChain, clean_environment, small_archive
from mutations import mutated, mutated_inside_gzip, mutated_json
from PIL import Image

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))

#: Bytes that reading one input may take beyond the imports. The inputs have at most 1 MB.
MEMORY = 400_000_000

quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Reader:
    """The process that reads the inputs of one kind, and the rules that it must keep."""

    def __init__(self, kind: str, sandbox: Path, *errors: str) -> None:
        self.kind, self.errors = kind, errors
        program = [sys.executable, str(Path(__file__).with_name("hostile_reader.py")), kind, str(sandbox)]
        self.process = subprocess.Popen(
            program, cwd=CHECKOUT, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.peak = self._answer()["peak"]

    def read(self, content: bytes) -> dict[str, Any]:
        """Read an input and return how that ended. Fails if a rule was broken."""
        assert self.process.stdin is not None
        self.process.stdin.write(struct.pack("<q", len(content)) + content)
        self.process.stdin.flush()
        outcome = self._answer()
        assert outcome["violations"] == [], "code was run, a file was touched, or an unsafe message was printed"
        assert outcome["end"] in ("success", "refused"), outcome
        assert outcome["peak"] - self.peak < MEMORY, outcome
        if outcome["end"] == "refused":
            message = outcome["message"].lower()
            assert "memory" not in message, f"tried to allocate what the input asked for: {outcome}"
            assert "alloc" not in message, f"tried to allocate what the input asked for: {outcome}"
            assert outcome["type"] in self.errors, outcome
            assert outcome["message"].isprintable(), outcome
            assert 10 < len(outcome["message"]) < 3000, outcome
        return outcome

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def try_out(reader: Reader, inputs: st.SearchStrategy[bytes]) -> None:
    """Read some of `inputs`, none of which may break a rule."""

    @quick
    @given(inputs)
    def hostile(content: bytes) -> None:
        reader.read(content)

    hostile()


def reader(kind: str, *errors: str) -> Any:
    """Make a fixture: the reader of one kind, in a sandbox of its own."""

    @pytest.fixture(scope="module")
    def started(tmp_path_factory: pytest.TempPathFactory, finished: SmallChain) -> Iterator[Reader]:
        sandbox = tmp_path_factory.mktemp(kind)
        shutil.copy(finished.folder("export") / "model.onnx", sandbox / "good.onnx")
        shutil.copy(finished.config, sandbox / "config.yaml")
        if kind == "workspace":
            shutil.copytree(finished.workspace, sandbox / "artifacts")
        process = Reader(kind, sandbox, *errors)
        yield process
        process.close()

    return started


archives = reader("archive", "Refused", "DataError")
pickles = reader("pickle", "Refused", "DataError")
params = reader("weights", "WeightsError")
checkpoints = reader("checkpoint", "Damaged", "WorkspaceError")
models = reader("onnx", "PipelineError")
images = reader("image", "PipelineError")
labels = reader("labels", "Refused", "DataError")
configurations = reader("yaml", "ConfigError")
workspaces = reader("workspace", "PipelineError", "WorkspaceError", "ConfigError")
object_locks = reader("lock", "AlreadyRunning")
servers = reader("http", "Refused")


def python_archive(root: Path) -> bytes:
    """The same images in the python layout, whose files are pickles."""
    out = io.BytesIO()
    with tarfile.open(small_archive(root / "binary.tar.gz")) as binary, tarfile.open(fileobj=out, mode="w") as python:
        for member in binary:
            name, content = member.name, binary.extractfile(member).read()  # type: ignore[union-attr]
            if name.endswith(".bin"):
                rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
                value = {b"data": rows[:, 1:].copy(), b"labels": rows[:, 0].tolist()}
            else:
                value = {"label_names": content.decode().split()}
            content = pickle.dumps(value, 2)
            info = tarfile.TarInfo(name.removesuffix(".bin").removesuffix(".txt"))
            info.size = len(content)
            python.addfile(info, io.BytesIO(content))
    return gzip.compress(out.getvalue(), 1, mtime=0)


@pytest.fixture(scope="module")
def good_archives(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    root = tmp_path_factory.mktemp("good")
    small = small_archive(root / "small.tar.gz", train=20, test=10)
    return [small.read_bytes(), python_archive(root)]


def test_archives(archives: Reader, good_archives: list[bytes]) -> None:
    for good in good_archives:
        assert archives.read(good)["end"] == "success"

    try_out(
        archives,
        st.sampled_from(good_archives).flatmap(lambda good: st.one_of(mutated(good), mutated_inside_gzip(good))),
    )


def test_plain_tar_archives(archives: Reader, good_archives: list[bytes]) -> None:
    try_out(archives, st.sampled_from(good_archives).map(gzip.decompress).flatmap(mutated))


def test_pickles(pickles: Reader) -> None:
    rows = np.zeros((10, 3072), np.uint8)
    goods = [pickle.dumps({b"data": rows, b"labels": list(range(10))}, protocol) for protocol in (0, 2, 4)]

    try_out(pickles, st.sampled_from(goods).flatmap(mutated))


def test_weights(params: Reader, finished: SmallChain) -> None:
    good = (finished.folder("train") / "model.params").read_bytes()
    assert params.read(good)["end"] == "success"

    try_out(params, mutated(good))


def test_checkpoints(checkpoints: Reader, finished: SmallChain) -> None:
    good = (finished.folder("train") / "trainer.npz").read_bytes()
    assert checkpoints.read(good)["end"] == "success"

    try_out(checkpoints, mutated(good))


def test_onnx_models(models: Reader, finished: SmallChain) -> None:
    good = (finished.folder("export") / "model.onnx").read_bytes()
    assert models.read(good)["end"] == "success"

    try_out(models, mutated(good))


def test_images(images: Reader) -> None:
    goods = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(np.random.RandomState(0).randint(0, 255, (40, 40, 3)).astype(np.uint8)).save(file, kind)
        goods.append(file.getvalue())
        assert images.read(goods[-1])["end"] == "success"

    try_out(images, st.sampled_from(goods).flatmap(mutated))


def test_labels_of_a_folder_of_images(labels: Reader) -> None:
    good = b"file,label,split\n0.png,good,train\n1.png,bad,train\n2.png,good,test\n3.png,bad,test\n"
    assert labels.read(good)["end"] == "success"

    try_out(labels, mutated(good))


def test_configurations(configurations: Reader, finished: SmallChain) -> None:
    paths = [*sorted((CHECKOUT / "config").glob("*.yaml")), finished.config]
    goods = [path.read_bytes() for path in paths]

    try_out(configurations, st.sampled_from(goods).flatmap(mutated))


def test_manifests_and_pointers(workspaces: Reader, finished: SmallChain) -> None:
    root = finished.workspace
    run = finished.folder("train").parent
    names = [path.relative_to(root) for path in (*root.glob("datasets/**/*.json"), *run.glob("*/manifest.json"))]

    try_out(
        workspaces,
        st.sampled_from(sorted(names)).flatmap(
            lambda name: mutated_json((root / name).read_bytes()).map(lambda text: f"{name}\n".encode() + text)
        ),
    )


def test_lock_objects(object_locks: Reader) -> None:
    record = {"host": "h", "pid": 1, "since": "2026-01-01T00:00:00Z", "machine": "m", "token": "t", "beat": 1.0}

    try_out(object_locks, mutated_json(json.dumps({**record, "stale_after": 90.0}).encode()))


def test_http_answers(servers: Reader, good_archives: list[bytes]) -> None:
    body = good_archives[0][:20_000]
    head = f'HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\nContent-Length: {len(body)}\r\nETag: "x"\r\n\r\n'
    assert servers.read(head.encode() + body)["end"] == "success"

    try_out(servers, mutated(head.encode()).map(lambda answer: answer + body))
