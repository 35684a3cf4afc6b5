"""What answers at --scheduler-url: anything but luigid is reported at once, in one line."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from luigi.rpc import RemoteScheduler
from luigi_runs import SmallChain, clean_environment, free_port

from tasks import scheduler


class _Answer(http.server.BaseHTTPRequestHandler):
    """Responds with the status in the path: `/404`, `/200`."""

    def do_POST(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "environment", "expected"),
    [
        ("/404", {}, "is not luigid (HTTP 404 Not Found): correct --scheduler-url"),
        ("/503", {}, "is not luigid (HTTP 503 Service Unavailable)"),
        ("/200", {}, "is not luigid (unexpected answer)"),
        (
            "/200",
            {"http_proxy": "http://127.0.0.1:1"},
            "the proxy http://127.0.0.1:1 does not allow access to http://127",
        ),
        (
            "/200",
            {"all_proxy": "socks5://me:secret@127.0.0.1:1"},
            "the proxy socks5://127.0.0.1:1 is a SOCKS proxy: pip",
        ),
    ],
)
def test_a_server_that_is_not_luigid_is_reported(
    answering: str, path: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    problem = scheduler.problem(RemoteScheduler(answering + path)) or ""
    assert expected in problem
    assert "secret" not in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8082", "invalid scheduler address localhost:8082: expected e.g. http://localhost:8082"),
        ("node1", "invalid scheduler address node1: expected e.g. http://localhost:8082"),
        ("http://[node1", "invalid scheduler address http://[node1: expected e.g. http://localhost:8082"),
        ("https://127.0.0.1:{port}", "no luigid is running at https://127.0.0.1:"),
        ("http://127.0.0.1:{mute}", "no luigid is running at http://127.0.0.1:"),
    ],
)
def test_an_unreachable_luigid_is_reported(url: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TIMEOUTS", (1.0, 0.2))
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        client = RemoteScheduler(url.format(port=free_port(), mute=mute.getsockname()[1]))
        assert expected in (scheduler.problem(client) or "")


def test_a_missing_certificate_bundle_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/there/is/none.pem")
    problem = scheduler.problem(RemoteScheduler("https://127.0.0.1:1")) or ""
    assert "/there/is/none.pem; check REQUESTS_CA_BUNDLE" in problem


def test_a_command_ends_at_once_with_35_and_one_line_if_another_server_answers(
    fresh: SmallChain, answering: str
) -> None:
    result = fresh.luigi("Report", scheduler=("--scheduler-url", f"{answering}/404"))
    assert result.rc == 35, result.text
    assert result.seconds < 30, "Luigi's own first retry comes after 30 s"
    assert result.log.count("\n") == 1
    assert "is not luigid (HTTP 404 Not Found)" in result.log


def test_luigi_deps_tree_needs_no_luigid(fresh: SmallChain) -> None:
    tool = str(Path(sys.executable).with_name("luigi-deps-tree"))
    command = [tool, "--module", "tasks", "Report", "--config", str(fresh.config), "--workspace", str(fresh.workspace)]
    command += ["--scheduler-url", f"http://127.0.0.1:{free_port()}"]
    done = subprocess.run(command, cwd=fresh.cwd, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "DownloadCifar" in done.stdout
