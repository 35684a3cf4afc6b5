"""The dashboard of a real luigid: the chain's graph, a training's progress, messages to it, a screenshot."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from luigi_runs import SmallChain
from luigid_process import Luigid, luigid, wait_for

import tasks
from pipeline.process import cores
from pipeline.workspace import Workspace, events
from tasks import gpus

_CHROMIUM = Path(__file__).parents[1] / "pipeline" / "report" / "chromium.py"


@pytest.fixture
def chromium() -> Any:
    found = sys.modules.get("chromium")
    if found is None:
        spec = importlib.util.spec_from_file_location("chromium", _CHROMIUM)
        assert spec
        assert spec.loader
        found = sys.modules["chromium"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    if found.executable() is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    return found


def test_a_training_can_be_watched_messaged_stopped_and_resumed(
    prepared: SmallChain, central: Luigid, tmp_path: Path, chromium: Any
) -> None:
    prepared.configure(training__epochs=4000)  # seconds to minutes, and the bar moves
    with prepared.start("Report", "--generation", "2026-W48", scheduler=central.scheduler) as command:
        task = wait_for(lambda: central.running("TrainVGG"), "the training to run")
        wait_for(lambda: central.progress(task["task_id"]) >= 2, "the bar to move")
        message = central.message(task["task_id"])
        for word in ("epoch ", "step ", "loss ", "validation accuracy ", "images/s", " left", "train.log"):
            assert word in message
        *_, log_line, messages = message.splitlines()
        assert messages == "messages: stop, checkpoint, stop-after-epoch"
        log = Path(log_line.removeprefix("log: "))
        assert "epoch 1/4000: train loss" in log.read_text()
        # The parameters in the dashboard's list.
        assert task["params"]["architecture"].startswith("tiny-")
        assert task["params"]["dataset"].startswith("mini from ")
        assert task["params"]["generation"] == "2026-W48"
        _check_dashboard(chromium, central, task, Path(os.environ.get("VGG_SCREENSHOTS", tmp_path)))

        answer = central.send_message(task, "faster!")
        assert "unknown message 'faster!'" in answer
        assert all(word in answer for word in ("stop", "checkpoint", "stop-after-epoch"))
        run = prepared.chain("2026-W48").run()
        assert run
        assert central.send_message(task, "checkpoint") == "ok"
        wait_for(lambda: "checkpoint written on request: step-" in log.read_text(), "a line about it")
        assert list(run.checkpoints.glob("step-*.npz"))
        assert central.send_message(task, "stop") == "ok"
        code, output = command.finish(), command.output
    assert code == 30, output
    assert ": checkpoint written on request: step-" in output
    assert ": stopped on request: checkpoint written" in output
    assert "Traceback" not in output

    last = max(int(path.stem.partition("-")[2]) for path in run.checkpoints.glob("step-*.npz"))
    epochs = last // 5 + 2
    prepared.configure(training__epochs=epochs)
    served = ("--vgg-workspace-url", "http://me:hush@node1/vgg/")
    with prepared.start("Report", "--generation", "2026-W48", *served, scheduler=central.scheduler) as command:
        code, output = command.finish(), command.output
    assert code == 0, output
    assert f"resumed from step-{last:09}.npz" in output
    recorded = [(event["event"], event["stage"]) for event in events.read(Workspace(prepared.workspace))]
    assert recorded.count(("stopped", "train")) == 1
    assert recorded.count(("finished", "report")) == 1

    graph = central.api("dep_graph", task_id=task["task_id"].replace("TrainVGG", "Report"))
    done = {
        item["name"]: item["status"] for item in central.api("task_list", status="DONE", upstream_status="").values()
    }
    assert set(done) == {"DownloadCifar", "TrainVGG", "Evaluate", "Export", "Report"}, graph

    # A finished task shows its result, and so does a later command that finds it done.
    report = task["task_id"].replace("TrainVGG", "Report")
    page = f"http://node1/vgg/{run.place.replace('@', '%40')}/report/index.html"
    for _ in range(2):
        shown = central.api("task_list", status="DONE", upstream_status="")
        assert shown[report]["tracking_url"] == page
        accuracy, link = central.message(report).splitlines()
        assert re.fullmatch(r"test accuracy \d+\.\d\d% \(mini, not the official archive\)", accuracy)
        assert link == f"report: {page}"
        assert "messages:" not in central.message(task["task_id"])
        with prepared.start("Report", "--generation", "2026-W48", *served, scheduler=central.scheduler) as command:
            assert command.finish() == 0


def _check_dashboard(chromium: Any, central: Luigid, task: dict[str, Any], folder: Path) -> None:
    """Check a running task in the browser: its parameters, its bar, and the live message behind the button."""
    index = f"{central.url}/static/visualiser/index.html"
    with chromium.page() as page:
        page.send("Emulation.setDeviceMetricsOverride", width=1500, height=900, deviceScaleFactor=1, mobile=False)

        def shows(text: str, where: str = "document.body") -> bool:
            return text in (page.evaluate(f"({where} || {{}}).innerText") or "")

        page.send("Page.navigate", url=f"{index}#tab=workers")
        wait_for(lambda: shows(task["params"]["architecture"]), "the running task in the list of workers")
        assert shows("generation=2026-W48")
        bar = "document.querySelector('.taskProgressBar')"
        assert int(page.evaluate(f"{bar}.getAttribute('aria-valuenow')")) >= 2
        assert page.evaluate(f"{bar}.getBoundingClientRect().width") > 0
        page.evaluate("document.querySelector('#workerList .statusMessage').click()")
        modal = "document.querySelector('#statusMessageModal')"
        wait_for(lambda: shows("validation accuracy", modal), "the message")
        wait_for(lambda: page.evaluate(f"getComputedStyle({modal}).opacity") == "1", "the message to be faded in")
        page.screenshot(folder / "dashboard.png")


def test_nothing_that_we_send_to_luigid_is_live_html_on_its_page(
    prepared: SmallChain, central: Luigid, chromium: Any, tmp_path: Path
) -> None:
    """Somebody else may choose a path or a message, and it may contain HTML."""
    bad = "<img src=x onerror=window.live=1>"
    prepared.workspace = tmp_path / bad
    prepared.configure(training__epochs=100_000)
    with prepared.start("Report", "--generation", "w1", scheduler=central.scheduler) as command:
        download = wait_for(lambda: central.running("TrainVGG") and central.api("task_list", status=""), "the training")
        task = wait_for(lambda: central.running("TrainVGG"), "the training to run")
        wait_for(lambda: bad in central.message(task["task_id"]), "its message")
        (resource,) = [name for item in download.values() for name in item["resources"] or () if "data set" in name]
        about = {"worker": "w", "resources": {resource: 1}, "family": "DownloadCifar", "params": {"workspace": bad}}
        central.api("add_task", task_id="download", **about)
        central.api("get_work", worker="w")
        central.api("update_resource", resource=resource, amount=1)
        given = {"worker": task["worker"], "task": task["task_id"], "content": bad}
        number = central.api("send_scheduler_message", **given)["message_id"]
        message = {"task_id": task["task_id"], "message_id": number}
        answer = wait_for(lambda: central.api("get_scheduler_message_response", **message)["response"], "a reply")
        with chromium.page() as page:
            for tab, shows in (("tasks", bad), ("workers", bad), ("resources", "1/1"), ("graph", "TrainVGG")):
                page.send("Page.navigate", url="about:blank")
                url = f"{central.url}/static/visualiser/index.html#tab={tab}&taskId={task['task_id']}"
                page.send("Page.navigate", url=url)
                _wait_for_text(page, shows, "body")
                if tab == "workers":
                    page.evaluate("document.querySelector('#workerList .statusMessage').click()")
                    _wait_for_text(page, bad, "#statusMessageModal pre")
                    page.evaluate(
                        f"$('<div>').appendTo('body').html({json.dumps(answer)})"
                    )  # as the page does with a reply
                assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0, tab
                assert page.evaluate("window.live") is None, tab
        central.send_message(task, "stop")
        code, output = command.finish(), command.output
    assert code == 30, output


def _wait_for_text(page: Any, text: str, place: str) -> None:
    shown = f"(document.querySelector({json.dumps(place)}) || {{}}).innerText || ''"
    wait_for(lambda: text in page.evaluate(shown), f"{text} in {place}")


def test_a_training_that_waits_for_the_cores_names_the_holder_and_can_be_stopped(
    prepared: SmallChain, central: Luigid, only_one_core: None
) -> None:
    with cores.take_turn("train another", 1, print), prepared.start("TrainVGG", scheduler=central.scheduler) as command:
        task = wait_for(lambda: central.running("TrainVGG"), "the training to run")
        message = wait_for(lambda: central.message(task["task_id"]), "a message")
        assert f"waiting for process {os.getpid()} on " in message
        assert "trains on all cores" in message
        assert central.send_message(task, "stop") == "ok"
        code, output = command.finish(), command.output
    assert code == 30, output
    assert output.count(f"waiting for process {os.getpid()} on ") == 1
    assert "stopped while waiting" in output
    assert "running: " not in output


@pytest.fixture
def only_one_core() -> Iterator[None]:
    """Restrict this process and its children to one core, shared with all other tests."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


def test_two_configurations_are_two_tasks(prepared: SmallChain, central: Luigid, tmp_path: Path) -> None:
    prepared.configure(training__epochs=100_000)
    other = SmallChain(tmp_path / "other", prepared.archive)
    other.workspace = prepared.workspace
    other.configure(architecture__conv_arch=[[1, 4]], training__epochs=100_000)
    with (
        prepared.start("TrainVGG", scheduler=central.scheduler) as command,
        other.start("TrainVGG", scheduler=central.scheduler) as other_command,
    ):

        def both() -> list[Any] | None:
            tasks = central.api("task_list", status="RUNNING", upstream_status="")
            found = [(task_id, task) for task_id, task in tasks.items() if task["name"] == "TrainVGG"]
            return found if len(found) == 2 else None

        found = wait_for(both, "two trainings at once")
        assert len({task["params"]["architecture"] for _, task in found}) == 2
        for task_id, task in found:
            wait_for(lambda task_id=task_id: central.message(task_id), "its first message")  # type: ignore[misc]
            central.send_message({"task_id": task_id, "worker": task["worker_running"]}, "stop")
        assert (command.finish(), other_command.finish()) == (30, 30)


def test_a_download_shows_its_progress(fresh: SmallChain, central: Luigid) -> None:
    """The source never ends, so the message shows the download's progress."""
    import http.server
    import threading

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100000000")
            self.end_headers()
            try:
                while not stop.is_set():
                    self.wfile.write(b"\x1f\x8b" + bytes(50_000))
                    time.sleep(0.05)
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    stop = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fresh.configure(data__source=f"http://127.0.0.1:{server.server_port}/mini.tar.gz")
    with fresh.start("DownloadCifar", scheduler=central.scheduler) as command:
        task = wait_for(lambda: central.running("DownloadCifar"), "the download to run")
        wait_for(lambda: "MB" in central.message(task["task_id"]), "how much has come")
        assert ".log" in central.message(task["task_id"])
        assert "unknown message" in central.send_message(task, "checkpoint")
        assert central.send_message(task, "stop") == "ok"
        code, output = command.finish(), command.output
    stop.set()
    server.shutdown()
    server.server_close()
    assert code == 30, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", "", {}),
        ("cpu:0,1", "", {}),
        ("gpu", "", {"gpu-node1-0": 1}),
        ("gpu:0,2", "", {"gpu-node1-0": 1, "gpu-node1-2": 1}),
        ("gpu:1", "4,6", {"gpu-node1-6": 1}),
        ("auto", "3", {"gpu-node1-3": 1}),
        ("gpu", "GPU-8c9d", {"gpu-node1-0": 1}),
    ],
)
def test_a_task_reserves_the_gpus_that_it_computes_on(
    device: str, visible: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(socket, "gethostname", lambda: "Node1.example.org")
    monkeypatch.setattr(gpus, "_has_gpu", lambda: True)
    assert gpus.resources(device) == expected
    if device == "auto":
        monkeypatch.setattr(gpus, "_has_gpu", lambda: False)
        assert gpus.resources(device) == {}


@pytest.mark.parametrize(
    ("device", "visible", "installed", "waits"),
    [
        ("auto", None, "mxnet-cu117", False),
        ("auto", None, "mxnet", True),  # the CPU build computes on all cores despite the GPU
        ("auto", "", "mxnet-cu117", True),
        ("gpu:0", None, "mxnet-cu117", False),
        ("cpu", None, "mxnet-cu117", True),
    ],
)
def test_on_a_machine_with_a_gpu_a_training_waits_for_the_cores_unless_it_uses_the_gpu(
    prepared: SmallChain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    visible: str | None,
    installed: str,
    waits: bool,
) -> None:
    prepared.configure(device=device)
    monkeypatch.setattr(cores, "turn_lock", lambda: tmp_path / "ours" / "cores.lock")
    monkeypatch.setattr(gpus, "_has_gpu", lambda: True)
    if installed != "mxnet":
        monkeypatch.setattr(gpus.metadata, "distribution", lambda name: Distribution.from_name("no-such-package"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    task = tasks.TrainVGG(config=str(prepared.config), workspace=str(prepared.workspace))
    with task.turn(task.chain, print) as inherited:
        assert bool(inherited) == waits


def test_two_trainings_share_a_gpu_if_luigi_cfg_says_so(tmp_path: Path) -> None:
    """Uses a real luigid with the resources that a training requests."""
    wanted = gpus.resources("gpu:0")
    (card,) = wanted
    (tmp_path / "luigi.cfg").write_text(f"[scheduler]\nstate_path = {tmp_path}/state.pickle\n[resources]\n{card} = 2\n")
    with luigid(tmp_path, LUIGI_CONFIG_PATH=str(tmp_path / "luigi.cfg")) as central:
        for name in ("a", "b", "c"):
            central.api("add_task", worker=name, task_id=name, status="PENDING", resources=wanted)
        assert [central.api("get_work", worker=name)["task_id"] for name in ("a", "b", "c")] == ["a", "b", None]
