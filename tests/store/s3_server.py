"""A real S3 server process on loopback (moto's), and a proxy in front of it that counts requests and injects faults."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from luigi_runs import free_port

SECRET = "a-secret-that-is-never-shown"

#: The client's read timeout in these tests, and the response time of a slow server (seconds).
READ_TIMEOUT, SLOW = 3, 5.0


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """Run a server without any bucket. Yields its port."""
    port = free_port()
    with open(folder / "s3-server.txt", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=output, stderr=output, cwd=folder
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            assert process.poll() is None, (folder / "s3-server.txt").read_text()
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def environment(port: int) -> dict[str, str]:
    """Return the usual environment variables that point S3 clients to the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": READ_TIMEOUT}}),
    }


class Proxy:
    """Forwards requests to the server at `target`.

    `trouble` is called for each request (method, path with query) and may return "500", "cut" (closes the connection
    in the middle of the upload), "slow" (responds after the client's timeout), or "hold" (waits for `release`, then
    closes the connection).
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.seen: list[tuple[str, str]] = []
        self.troubled: list[str] = []
        self.trouble: Callable[[str, str], str | None] = lambda method, path: None
        self.held, self.release = threading.Event(), threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def quiet(self) -> None:
        """Stop injecting faults and reset the counts."""
        self.trouble = lambda method, path: None
        self.seen, self.troubled = [], []

    @property
    def listings(self) -> list[str]:
        return [path for method, path in self.seen if method == "GET" and "list-type=2" in path]

    @property
    def downloads(self) -> list[str]:
        return [path for method, path in self.seen if method == "GET" and "list-type=2" not in path]

    def _handler(proxy) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805 (`self` is the handler below)
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *about: object) -> None:
                pass

            def answer(self) -> None:
                proxy.seen.append((self.command, self.path))
                trouble = proxy.trouble(self.command, self.path)
                if trouble:
                    proxy.troubled.append(f"{trouble} {self.command}")
                length = int(self.headers.get("Content-Length") or 0)
                if trouble in ("cut", "hold"):
                    self.rfile.read(length // 2)
                    if trouble == "hold":
                        proxy.held.set()
                        proxy.release.wait()
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                body = self.rfile.read(length)
                if trouble == "slow":
                    time.sleep(SLOW)
                if trouble == "500":
                    self._send(500, [], b"<Error><Code>InternalError</Code><Message>try again</Message></Error>")
                else:
                    self._send(*self._ask(body))

            def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=120)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                content = response.read()
                connection.close()
                return response.status, response.getheaders(), content

            def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                with contextlib.suppress(OSError):  # the client may have given up
                    self.send_response_only(status)
                    own = ("transfer-encoding", "content-length", "connection")
                    for name, value in headers:
                        if name.lower() not in own or (self.command == "HEAD" and name.lower() == "content-length"):
                            self.send_header(name, value)
                    if self.command != "HEAD":
                        self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 (the library's names)

        return Handler


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
