"""A workspace on a file server: the chain over a real sshd, and a second host."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from luigi_runs import free_port
from store_hosts import Host

from pipeline.storage.store import Store

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an sshd, with its key where `ssh` looks for it. Yields the address of an empty folder there."""
    pytest.importorskip("paramiko", reason="paramiko is not installed: pip install paramiko")
    if SSHD is None or os.geteuid():
        pytest.skip("needs sshd, and root to start it")
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home.parent))
    for key in (tmp_path / "host", home / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": home / "id_ed25519.pub",
        "PidFile": tmp_path / "pid",
        "PermitRootLogin": "yes",
        "StrictModes": "no",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (tmp_path / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    with subprocess.Popen([SSHD, "-D", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None, "sshd did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (tmp_path / "shared").mkdir()
        yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/shared"
        process.terminate()


def test_the_chain_runs_is_recognised_by_another_host_verified_and_set_aside(
    server: str, archive: Path, tmp_path: Path
) -> None:
    one, two = (Host(tmp_path / name, server, None, archive) for name in ("one", "two"))
    shared = tmp_path / "shared"
    assert sorted(one.good("Report").ran) == ["dataset", "evaluate", "export", "report", "train"]
    assert list(shared.glob("runs/*/*/report/index.html"))
    assert two.good("Report").ran == []
    assert "no damage" in two.good("Verify").output
    two.good("SetAside", "--stage", "evaluate", "--confirm")
    assert list(shared.glob("trash/*/runs/*/*/evaluate/metrics.json"))
    assert one.good("Report").ran == ["evaluate"]  # with the same figures, so the report stays
    assert not list(shared.glob("work/locks/*.lock"))


def test_one_of_two_creators_succeeds_and_names_are_taken_literally(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Store(f"{server}/exp[1]::x", retry_timeout=10), Store(f"{server}/exp[1]::x", retry_timeout=10)
    assert one.create("locks/a", b"one")
    # The other host checked before that, and writes only now.
    fs = two._connection()[0]
    answers = iter([None, None])
    monkeypatch.setattr(two, "read", lambda path: next(answers, one.read(path)))
    looks = iter([False])
    real = fs.exists
    monkeypatch.setattr(fs, "exists", lambda path: next(looks, None) is not False and real(path))
    assert not two.create("locks/a", b"two")
    assert one.read("locks/a") == b"one"
    assert (tmp_path / "shared" / "exp[1]::x" / "locks" / "a").read_bytes() == b"one"
    one.write("locks/b", b"b")
    assert one.read_many(["locks/a", "locks/b"]) == {"locks/a": b"one", "locks/b": b"b"}
    assert set(one.find("locks/")) == {"locks/a", "locks/b"}
