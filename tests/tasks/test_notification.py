"""Notifications: the `[vgg] notify` command, and e-mails through a real SMTP server."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import os
import time
import traceback
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import luigi
import pytest
from aiosmtpd.controller import Controller
from luigi.configuration import get_config
from luigi_runs import SmallChain, free_port

import tasks
from pipeline.errors import AlreadyRunning, StageFailed, WorkspaceError
from tasks import notification
from tasks.worker import Worker

SECRET = "https://me:hush@host/x?token=hush"


class Mailbox:
    """Handler of an SMTP server that keeps the letters it receives."""

    def __init__(self) -> None:
        self.letters: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
        letter = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
        return "250 OK"

    @property
    def texts(self) -> list[str]:
        return [part.get_content() for letter in self.letters for part in letter.walk() if not part.is_multipart()]


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A mailbox behind a real SMTP server, and a luigi.cfg that sends e-mail there."""
    box, port = Mailbox(), free_port()
    server = Controller(box, hostname="127.0.0.1", port=port)
    server.start()
    config = tmp_path / "luigi.cfg"
    config.write_text(f"[email]\nreceiver = ops@example.org\n[smtp]\nhost = 127.0.0.1\nport = {port}\n")
    try:
        yield SimpleNamespace(box=box, config=str(config), port=port)
    finally:
        server.stop()


def _hook(file: Path) -> str:
    """A command that appends each event to a file, one per line."""
    return f"cat >> {file}"


def _received(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Any:

    def hook(command: str) -> None:
        monkeypatch.setattr(notification, "vgg", lambda: SimpleNamespace(notify=command))

    return hook


def test_a_failed_training_is_mailed_with_the_cause_first_and_sent_to_the_hook(
    prepared: SmallChain, mailbox: SimpleNamespace, tmp_path: Path
) -> None:
    received = tmp_path / "received.jsonl"
    about = ("--vgg-launcher", "false", "--vgg-notify", f"curl -s {SECRET} >/dev/null 2>&1; {_hook(received)}")
    failed = prepared.luigi("Report", "--generation", "by-hand", *about, LUIGI_CONFIG_PATH=mailbox.config)
    assert failed.rc == 30, failed.text
    assert "Traceback" not in failed.text
    assert "Warning" not in failed.text
    (event,) = _received(received)
    (letter,), (text,) = mailbox.box.letters, mailbox.box.texts
    assert event["message"].startswith("train: the launcher 'false' exited with status 1")
    assert event["text"].startswith(f"failed on {event['host']}: train tiny-")
    assert (event["event"], event["task"], event["generation"]) == ("failed", "TrainVGG", "by-hand")
    assert event["run"] == prepared.chain("by-hand").run_id
    assert event["workspace"] == str(prepared.workspace)
    first = text.splitlines()[0]
    assert first.endswith(event["message"].removeprefix("train: "))
    assert letter["Subject"] == f"failed on {event['host']}: {first.partition('; ')[0]}"
    assert letter["To"] == "ops@example.org"
    assert "hush" not in text
    assert "hush" not in failed.text
    for path in prepared.workspace.rglob("*"):
        assert not path.is_file() or b"hush" not in path.read_bytes(), path


def test_failures_outside_of_stages_are_mailed_in_one_line_too(
    done: SmallChain, mailbox: SimpleNamespace, tmp_path: Path
) -> None:
    received = tmp_path / "received.jsonl"
    pointer = done.chain().workspace.current(done.chain().config)
    pointer.parent.mkdir(parents=True)
    pointer.write_text("{")
    about = ("--workers", "2", "--vgg-notify", _hook(received))
    assert done.luigi("Retrain", *about, LUIGI_CONFIG_PATH=mailbox.config).rc == 35
    (damaged,) = done.workspace.glob("runs/*/*/train/model.params")
    damaged.write_bytes(b"damaged")
    assert done.luigi("Verify", *about, LUIGI_CONFIG_PATH=mailbox.config).rc == 4
    scheduling, verify = _received(received)
    assert (scheduling["task"], verify["task"]) == ("Retrain", "Verify")
    assert f"{pointer}: damaged" in scheduling["message"]
    assert " damaged: restore the files" in verify["message"]
    for text, event in zip(mailbox.box.texts, (scheduling, verify), strict=True):
        assert event["message"] in text.splitlines()[0]
        assert "Traceback" not in text
        assert "pipeline.errors" not in text


def test_a_promotion_is_notified_even_if_its_model_cannot_be_served(done: SmallChain, tmp_path: Path) -> None:
    model = done.folder("export") / "model.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    failed = done.luigi("Promote", "--vgg-notify", _hook(tmp_path / "received.jsonl"))
    assert failed.rc == 30, failed.text
    assert "model.onnx is damaged" in failed.log
    assert [event["event"] for event in _received(tmp_path / "received.jsonl")] == ["promoted", "failed"]


def test_a_hook_that_fails_or_hangs_is_logged_and_stops_nothing(
    hooked: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(notification, "LIMIT_SECONDS", 1.0)
    caplog.set_level("INFO", "vgg")
    monkeypatch.setattr(notification.log, "propagate", True)
    hooked(f"cat >/dev/null; echo not found: {SECRET}; exit 22")
    notification.notify("failed", "x")
    hooked("there-is-no-such-program")
    notification.notify("failed", "x")
    hooked("echo delivered; exec <&-")  # without reading its input
    notification.notify("failed", "x" * 1_000_000)
    pid = tmp_path / "pid"
    hooked(f"sleep 1000 & echo $! > {pid}; wait")
    notification.notify("failed", "x")
    hooked("yes")
    notification.notify("failed", "x" * 1_000_000)
    lines = [record.getMessage() for record in caplog.records]
    undelivered = "[vgg] notify: 'failed' was not delivered: the command"
    assert lines[0] == f"{undelivered} exited with status 22: not found: https://host/x"
    assert lines[1].startswith(f"{undelivered} exited with status 127: ")
    assert lines[2] == "[vgg] notify: delivered"
    assert lines[3] == f"{undelivered} did not end within 1 s and was killed"
    assert lines[4].startswith(f"{undelivered} printed over 1 MB and was killed: y y y")
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{int(pid.read_text())}") and time.monotonic() < deadline:
        time.sleep(0.01)  # an orphan is reaped by another process
    assert not os.path.exists(f"/proc/{int(pid.read_text())}")


def test_a_background_process_of_a_hook_is_not_waited_for(hooked: Any, tmp_path: Path) -> None:
    hooked(f"sleep 300 & echo $! > {tmp_path}/pid")
    started = time.monotonic()
    notification.notify("promoted", "x")
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert time.monotonic() - started < notification.LIMIT_SECONDS


def test_secrets_in_addresses_do_not_reach_the_hook(hooked: Any, tmp_path: Path) -> None:
    hooked(_hook(tmp_path / "received.jsonl"))
    notification.notify("failed", f"cannot read {SECRET}: 404", source=SECRET)
    (event,) = _received(tmp_path / "received.jsonl")
    assert event["text"].endswith("cannot read https://host/x 404")
    assert event["source"] == "https://host/x"


def test_other_programs_use_the_hook_too_and_a_held_lock_is_not_reported(
    done: SmallChain, hooked: Any, tmp_path: Path
) -> None:
    hooked(_hook(tmp_path / "received.jsonl"))
    task = tasks.Evaluate(config=str(done.config), workspace=str(done.workspace))
    task.on_failure(AlreadyRunning("somebody else does it"))
    assert _received(tmp_path / "received.jsonl") == []
    task.on_failure(StageFailed("evaluate: its process died"))
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        task.on_failure(error)
    first, second = _received(tmp_path / "received.jsonl")
    assert first["message"] == "evaluate: its process died"
    assert first["text"].endswith(f": evaluate {done.chain().run_id}: its process died")
    assert second["message"] == "lines"


@contextlib.contextmanager
def _settings(**sections: dict[str, Any]) -> Iterator[None]:
    """Override sections of luigi.cfg in this block."""
    for section, options in sections.items():
        for name, value in options.items():
            get_config().set(section, name, str(value))
    try:
        yield
    finally:
        for section in sections:
            get_config().remove_section(section)


def test_luigids_batch_emails_give_the_cause_too(done: SmallChain, mailbox: SimpleNamespace) -> None:
    task = tasks.Evaluate(config=str(done.config), workspace=str(done.workspace))
    with _settings(email={"receiver": "ops@example.org"}, smtp={"host": "127.0.0.1", "port": mailbox.port}):
        luigid = luigi.scheduler.Scheduler(batch_emails=True)
        worker = Worker(scheduler=luigid, no_install_shutdown_handler=True)
        try:
            raise WorkspaceError("manifest.json: damaged")
        except WorkspaceError:
            worker._announce_scheduling_failure(task, traceback.format_exc())
        luigid._email_batcher.send_email()
    (text,) = mailbox.box.texts
    assert "manifest.json: damaged" in text
    assert "Traceback" not in text
    assert "pipeline.errors" not in text


def test_an_email_that_cannot_be_sent_is_logged(
    done: SmallChain, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks.Evaluate(config=str(done.config), workspace=str(done.workspace))
    monkeypatch.setattr(notification.log, "propagate", True)
    for option, value, expected in (
        ("method", "smtp", "Not able to connect to smtp server"),
        ("method", "sendgrid", "no e-mail was sent: "),
        ("format", "brief", "no e-mail was sent: "),
    ):
        caplog.clear()
        gone = {"host": "127.0.0.1", "port": free_port()}
        with _settings(email={"receiver": "ops@example.org", option: value}, smtp=gone):
            notification.send_email(task, "evaluate: its process died")
        assert expected in caplog.text
