"""A nightly job on a growing folder of images: Retrain, Prune and Status under a luigid, beside a service.

After every step, all output for people and programs is compared with independent knowledge: which images were put
where, when a command ran, what an exported model predicts, how large the files are. To simulate a day per night, the
trash and all leftovers are made a day older.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from luigi_runs import Result, Running, SmallChain, clean_environment
from luigid_process import Luigid
from nights import age
from PIL import Image

from pipeline.dataset import store
from pipeline.retraining import periods
from pipeline.workspace import Run, Workspace, events

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40), "yellow": (220, 210, 40)}

#: Images per class at the beginning; generations and days of trash that `Prune` keeps.
AT_FIRST, KEEP, DAYS = 40, 7, 5

DATA, ARCHITECTURE, PAGES = "parts", "tiny", "http://node1/vgg"

#: A service: loads the current model repeatedly until a file appears, and runs each new one on the images.
READER = """
import hashlib, json, os, sys, time
from pathlib import Path
import numpy, onnxruntime
stable, images, end = Path(sys.argv[1]), numpy.load(sys.argv[2]), Path(sys.argv[3])
reads, last = 0, None
os.nice(10)
while not end.exists():
    model = (stable / "model.onnx").read_bytes()
    folder = stable.resolve()
    about = json.loads((folder / "manifest.json").read_text())
    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == about["files"]["model.onnx"]["sha256"]
    reads += 1
    if (about["run"], about["since"]) != last:
        last = about["run"], about["since"]
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(["probabilities"], {"images": images})
        sees = [about["classes"][row.argmax()] for row in found]
        print(json.dumps({"run": about["run"], "generation": about["generation"], "sees": sees}), flush=True)
    time.sleep(0.05)
print("reads:", reads, flush=True)
"""


class ImageFolder(SmallChain):
    def __init__(self, root: Path, labels: Sequence[str]) -> None:
        (root / DATA).mkdir(parents=True)
        super().__init__(root, root / DATA)
        for label in labels:
            self.arrive(label, AT_FIRST, 0)
        self.configure(data__name=DATA, data__test_fraction=0.25, training__epochs=4)

    def arrive(self, colour: str, count: int, start: int, place: str = DATA, label: str = "") -> None:
        """Add `count` images of a colour to the folder of its class, or of class `label`.

        Every eighth one has another class's colour, so that no model is right about all of them.
        """
        for number in range(start, start + count):
            actual = colour if number % 8 else list(COLOURS)[list(COLOURS).index(colour) - 1]
            noise = np.random.RandomState(number * 10 + len(colour)).randint(-30, 30, (40, 48, 3))
            path = self.root / place / (label or colour) / f"{colour}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.array(COLOURS[actual]) + noise).clip(0, 255).astype(np.uint8)).save(path)


@dataclass(frozen=True)
class Night:
    """A day's changes, and the gate's expected decision that night: empty if there is nothing to train."""

    images: int = 0  # new images per class
    wrong: int = 0  # red images that arrive in the folder of blue
    corrected: bool = False  # all wrong images are moved to the right folder
    outcome: str = "promoted"
    back_to: int | None = None  # next morning: roll back to the model of so many nights ago


@dataclass(frozen=True)
class NightSummary:
    """A night as a row of the benchmark's table."""

    generation: str
    images: int
    outcome: str
    accuracy: float | None
    current: str
    megabytes: float
    seconds: float


class Service:
    """A process that reads the current model continuously."""

    def __init__(self, job: NightlyJob) -> None:
        images = np.stack([np.full((32, 32, 3), COLOURS[label]) for label in COLOURS]).transpose(0, 3, 1, 2) / 255
        np.save(job.root / "images.npy", images.astype("float32"))
        self._end = job.root / "end"
        stable = job.workspace / "current" / DATA / ARCHITECTURE
        command = [sys.executable, "-c", READER, stable, job.root / "images.npy", self._end]
        self.process = Running([str(word) for word in command], job.cwd, clean_environment(), job.root)

    def loaded(self) -> list[dict[str, Any]]:
        """The models loaded so far, each with its predictions for a plain image of each class."""
        return [json.loads(line) for line in self.process.output.splitlines() if line.endswith("}")]

    def wait_for(self, run: str) -> None:
        """Wait until it has loaded the model of a run, and check that its predictions are right."""
        self.process.wait_for(lambda: [model["run"] for model in self.loaded()][-1:] == [run], f"{run} is loaded")
        assert self.loaded()[-1]["sees"] == list(COLOURS), self.loaded()[-1]

    def finish(self) -> int:
        """Stop it. Returns how often it has read the model."""
        self._end.touch()
        self.process.finish(0)
        return int(self.process.output.rpartition("reads: ")[2])


class NightlyJob(ImageFolder):
    """The job, with a ledger of the expected state that does not rely on the plugin's output."""

    def __init__(self, root: Path, central: Luigid, nights: int) -> None:
        super().__init__(root, list(COLOURS))
        self.central = central
        self.today = periods.today() - datetime.timedelta(days=nights)  # the last night is today's
        # Train long enough that the accuracy depends on the images, not on the seed.
        self.configure(training__epochs=20, training__batch_size=16, training__learning_rate=0.005)
        self.configure(training__schedule={"kind": "triangle"}, training__validation_images=10)
        self.configure(retrain={"every": "day", "tolerance": 0.05, "keep": KEEP})
        self.metrics, self.notified = root / "vgg.prom", root / "notified.jsonl"
        (self.cwd / "luigi.cfg").write_text(
            f"[vgg]\nnotify = cat >> {self.notified}\nmetrics = {self.metrics}\nworkspace_url = {PAGES}\n"
        )
        self.images, self.wrong, self.number = Counter(dict.fromkeys(COLOURS, AT_FIRST)), 0, 1000
        self.service: Service | None = None
        self.reads = 0
        self.made: dict[str, tuple[str, float]] = {}  # generation -> the gate's decision, accuracy
        self.runs: dict[str, Run] = {}
        self.expected_events: list[tuple[str, str]] = []
        self.current, self.since, self.success = "", (0.0, 0.0), (0.0, 0.0)

    def month(self, nights: Sequence[Night]) -> Iterator[NightSummary]:
        """Simulate the nights. Yields a summary of each once it has passed all checks."""
        for night in nights:
            started = time.monotonic()
            age(Workspace(self.workspace), days=1)
            self.today += datetime.timedelta(days=1)
            self._night(night, self._day(night))
            pruned = self.luigi("Prune", "--older-than", f"{DAYS}d", "--confirm")
            assert pruned.rc == 0, pruned.text
            megabytes = self._check()
            if night.back_to is not None:
                self._roll_back(str(self.today - datetime.timedelta(days=night.back_to)))
            name = self.today.isoformat()
            outcome, accuracy = self.made.get(name, ("nothing new", None))
            seconds = time.monotonic() - started
            yield NightSummary(name, self.images.total(), outcome, accuracy, self.current, megabytes, seconds)
        assert self.service
        self.reads = self.service.finish()

    # --- events ---------------------------------------------------------------------------------------------------

    def _day(self, night: Night) -> str:
        """Add images and correct labels. Returns how the plugin must describe the change."""
        changes = []
        more = Counter({label: night.images for label in COLOURS}) + Counter(blue=night.wrong)
        for colour in COLOURS if night.images else ():
            self.arrive(colour, night.images, self.number)
        self.arrive("red", night.wrong, self.number + night.images, label="blue")
        self.number += night.images + night.wrong
        self.images.update(more)
        self.wrong += night.wrong
        ranked = sorted(more.items(), key=lambda item: (-item[1], item[0]))
        changes += [f"{count} more images in class {label}" for label, count in ranked[:3]]
        changes += [f"{count} in another class" for _, count in ranked[3:]]
        if night.corrected:
            for path in (self.root / DATA / "blue").glob("red-*.png"):
                path.rename(self.root / DATA / "red" / path.name)
            self.images.update(red=self.wrong, blue=-self.wrong)
            changes.append(f"labels of {self.wrong} changed")
            self.wrong = 0
        return ", ".join(changes)

    def _night(self, night: Night, changed: str) -> None:
        name, began = self.today.isoformat(), time.time()
        result = self.luigi("Retrain", "--date", name, scheduler=self.central.scheduler)
        assert result.rc == (5 if night.outcome == "refused" else 0), result.text
        self.success = self.success if result.rc else (began, time.time())
        if not night.outcome:
            assert result.ran == [], result.text
            assert "same images, settings and seed, so the same weights as " in result.log
            self._check_dashboard(name)
            return
        assert result.ran == ["dataset", "train", "evaluate", "export", "promote", "report"], result.text
        run = self.run(name)
        report = json.loads((run.stage("report") / "report.json").read_text())
        if self.made:
            assert f"{DATA} has changed: {changed}" in result.log
            assert report["dataset"]["change"]["what"] == changed
        assert report["comparison"]["decision"]["outcome"] == night.outcome, result.log
        self.runs[name], self.made[name] = run, (night.outcome, self._accuracy(run))
        self.expected_events.append((night.outcome, name))
        if night.outcome == "promoted":
            self.current, self.since = name, (began, time.time())
        self.service = self.service or Service(self)
        self._check_dashboard(name)

    def _roll_back(self, name: str) -> None:
        began = time.time()
        result: Result = self.luigi("Rollback", "--to", name)
        assert result.rc == 0, result.text
        self.current, self.since = name, (began, time.time())
        self.expected_events.append(("rolled back", name))
        self._check()

    # --- checks ---------------------------------------------------------------------------------------------------

    def _accuracy(self, run: Run) -> float:
        """Compute the exported model's accuracy on the test images. Checks that the data set has all images."""
        import onnxruntime

        folder = run.workspace.datasets / run.dataset_id
        images, labels, classes = store.load_test(folder)
        assert classes == list(COLOURS)
        data = store.load(folder)
        counts = Counter(classes[label] for part in (data.train_labels, labels) for label in part.tolist())
        assert counts == self.images
        session = onnxruntime.InferenceSession(run.stage("export") / "model.onnx", providers=["CPUExecutionProvider"])
        (probabilities,) = session.run(["probabilities"], {"images": np.asarray(images, "float32") / 255})
        return float((probabilities.argmax(1) == labels).mean())

    def _check_dashboard(self, name: str) -> None:
        """Check that luigid's page shows the night's result, a link to its report, and no failure."""
        for status in ("FAILED", "RUNNING", "PENDING", "DISABLED"):
            assert self.central.api("task_list", status=status, upstream_status="") == {}
        tasks = self.central.api("task_list", status="DONE", upstream_status="")
        (retrain,) = (key for key, task in tasks.items() if task["params"].get("date") == name)
        trained = name if name in self.made else max(self.made)  # nothing new: the newest one stands for it
        outcome, accuracy = self.made[trained]
        assert self.central.message(retrain).startswith(f"generation {name}: {outcome}"), self.central.message(retrain)
        page = self.runs[trained].stage("report") / "index.html"
        link = f"{PAGES}/{page.relative_to(self.workspace).as_posix().replace('@', '%40')}"
        assert tasks[retrain]["tracking_url"] == link
        assert f"{100 * accuracy:.2f}\u202f% test accuracy" in page.read_text()
        reports = [
            key for key, task in tasks.items()
            if task["name"] == "GenerationReport" and task["params"]["generation"] == trained
        ]  # fmt: skip
        assert len(reports) == 1
        first, second = self.central.message(reports[0]).splitlines()
        assert first.startswith(f"test accuracy {accuracy:.2%} ({DATA}"), first
        assert second == f"report: {link}"

    def _check(self) -> float:
        """Compare Status, metrics, notifications and service with the ledger. Returns the workspace's size in MB."""
        status = self.luigi("Status", "--json", "--sizes")
        assert status.rc == 3, "the run without a generation is never made"
        facts = json.loads(status.output)
        run, (_, accuracy) = self.runs[self.current], self.made[self.current]
        current = facts["current"]
        assert (current["run"], current["generation"]) == (run.place, self.current)
        assert current["accuracy"] == accuracy
        assert facts["current_problem"] is None
        since = _seconds(current["since"])
        assert int(self.since[0]) <= since <= self.since[1]
        kept = {item["name"]: (item["outcome"], item["accuracy"]) for item in facts["generations"]}
        assert kept == {name: self.made[name] for name in kept}
        assert [item["name"] for item in facts["generations"] if item["current"]] == [self.current]
        assert next(iter(kept)) == max(self.made)
        assert len(kept) <= KEEP + 3, "and the current one, the one before it, the newest"
        tomorrow = str(periods.today() + datetime.timedelta(days=1))
        assert facts["next_generation"] == {"name": tomorrow, "due": tomorrow, "reasons": []}
        self._check_sizes(facts["sizes"])
        self._check_metrics(since)
        happened = [(event["event"], event["generation"]) for event in events.read(Workspace(self.workspace))
                    if event["event"] in ("promoted", "refused", "rolled back")]  # fmt: skip
        notified = [json.loads(line) for line in self.notified.read_text().splitlines()]
        assert happened == [(event["event"], event["generation"]) for event in notified] == self.expected_events
        assert self.service
        self.service.wait_for(run.place)
        return sum(kind["bytes"] for kind in facts["sizes"].values()) / 1e6

    def _check_sizes(self, sizes: dict[str, dict[str, int]]) -> None:
        found = self._found_sizes()
        found["work"]["bytes"] = sizes["work"]["bytes"]  # the metrics' lock is created only after that
        assert sizes == found
        whole, workspace = KEEP + 3, Workspace(self.workspace)
        per_run = max(sum(1 for path in run.rglob("*") if path.is_file()) for run in workspace.runs.glob("*/*"))
        assert sizes["runs"]["files"] <= whole * per_run
        assert len(list(workspace.trash.glob("*/runs/*/*"))) <= DAYS + 1
        assert len(list(workspace.locks.iterdir())) <= (DAYS + 1) * 16 + 4
        assert len(list(workspace.root.glob("current/*/*@*"))) <= 3
        for folder in (workspace.datasets, workspace.runs, workspace.work, workspace.trash):
            assert len(list(folder.glob("*"))) <= whole + 3, f"{folder.name}: {os.listdir(folder)}"

    def _found_sizes(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for path in self.workspace.rglob("*"):
            if path.is_file() and not any(parent.is_symlink() for parent in path.parents):
                kind = found.setdefault(path.relative_to(self.workspace).parts[0].partition(".")[0], Counter())
                kind["files"] += 1
                kind["bytes"] += path.stat().st_size
        return {kind: dict(size) for kind, size in found.items()}

    def _check_metrics(self, since: float) -> None:
        found: dict[str, str] = {}
        for line in self.metrics.read_text().splitlines():
            if not line.startswith("#"):
                key, _, value = line.rpartition(" ")
                assert found.setdefault(key, value) == value, f"{key} is there twice"
        model = f'workspace="{self.workspace}",dataset="{DATA}",architecture="{ARCHITECTURE}"'
        success = float(found.pop(f"vgg_retrain_last_success_timestamp_seconds{{{model}}}"))
        assert int(self.success[0]) <= success <= self.success[1]
        count = Counter(outcome for outcome, _ in self.made.values())
        run = f'generation="{self.current}",run="{self.runs[self.current].place}"'
        sizes = self._found_sizes()
        assert found == {
            f"vgg_model_info{{{model},{run}}}": "1",
            f"vgg_model_accuracy{{{model}}}": str(self.made[self.current][1]),
            f"vgg_model_current_since_timestamp_seconds{{{model}}}": str(int(since)),
            f'vgg_generations_total{{{model},outcome="promoted"}}': str(count["promoted"]),
            f'vgg_generations_total{{{model},outcome="refused"}}': str(count["refused"]),
            **{
                f'vgg_workspace_bytes{{workspace="{self.workspace}",kind="{kind}"}}': str(size["bytes"])
                for kind, size in sizes.items()
            },
        }


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
