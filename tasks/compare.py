"""Comparing configurations and seeds: `luigi --module tasks Compare --configs '["config/vgg11.yaml", …]'`."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import luigi

from pipeline import comparison, stage_sync
from pipeline.comparison import Comparison
from pipeline.errors import ConfigError
from pipeline.files import expanded, read_json
from pipeline.process import parent
from pipeline.workspace import MANIFEST
from pipeline.workspace.freshness import Chain, refresh
from tasks.base import PluginTask, tell_results
from tasks.configurations import check_name, remember
from tasks.log import log
from tasks.results import StoredFile, target
from tasks.settings import vgg
from tasks.stage import StageTask, checking, recorded, working
from tasks.stages import Evaluate, Report
from tasks.workspaces import looked_again, page_url, workspace_at

#: Plans by the parameters of their task, with what the files were like then: Luigi asks twice for each task, and a plan
#: of many runs takes a while.
_planned: dict[tuple[Any, ...], tuple[list[Any], Comparison]] = {}


class Compare(PluginTask):
    """Train what is missing of several configurations and seeds, and write one page that ranks them."""

    configs = luigi.Parameter(
        description="the YAML files: paths or patterns, e.g. config/vgg11.yaml,config/vgg1*-bn.yaml, or the "
        "same as a JSON list; has no default"
    )
    seeds = luigi.Parameter(
        default="", description="seeds to train each with, e.g. 0,1,2; default: the one in its file"
    )
    name = luigi.Parameter(default="", description="the page's folder, e.g. depth; default: made from what is compared")
    reports = luigi.BoolParameter(default=False, description="also export each run and write its report; default: no")
    accepts_messages = False
    disable_hard_timeout = None

    @classmethod
    def filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """With patterns expanded and the name filled in."""
        values = super().filled_in(values)
        values["configs"] = json.dumps(comparison.expand(_listed(values["configs"])))
        values["seeds"] = ",".join(map(str, _seeds(values["seeds"])))
        check_name("--name", values["name"])
        files = [_state(path) for path in json.loads(values["configs"])]
        given = tuple(values.values())
        known = _planned.get(given)
        planned = known[1] if known and known[0] == files else _plan(values)
        values["name"] = planned.name
        _planned[given] = _planned[tuple(values.values())] = (files, planned)
        return values

    @property
    def comparison(self) -> Comparison:
        return _planned[tuple(self.param_kwargs[name] for name, _ in self.get_params())][1]

    def requires(self) -> list[StageTask]:
        task = Report if self.reports else Evaluate
        return [
            task(
                config=entry.source,
                workspace=self.workspace,
                generation=entry.chain.generation,
                settings=remember(entry.source, entry.chain.given),
            )
            for entry in self.comparison.entries
        ]

    def complete(self) -> bool:
        """True when every run is done and the page is made from them. Looks at manifests and file sizes only."""
        with checking():
            compared = self.comparison
            self._refresh()
            return compared.complete() or (looked_again(*self._chains()) and compared.complete())

    def output(self) -> luigi.LocalTarget | StoredFile:
        return target(self.comparison.workspace, self.comparison.folder / MANIFEST)

    def run(self) -> None:
        """Write the page in a process of its own, unless another process has just done it."""
        compared = self.comparison
        lock = compared.workspace.lock(f"comparison.{compared.name}")
        wait = vgg().overlap == "wait"
        with (
            working(),
            compared.workspace.hold(lock, f"comparison {compared.name}", wait, functools.cache(log.info)) as descriptor,
        ):
            self._refresh(since=time.monotonic())
            reasons = compared.why()
            if reasons:
                self._write(compared, descriptor, reasons)

    def _write(self, compared: Comparison, lock: int, reasons: list[str]) -> None:
        data = compared.entries[0].chain.dataset_folder()
        with recorded(compared.workspace, reasons, stage="compare", run=compared.name):
            if data is not None:
                compared.workspace.fetch(data)
            tell = functools.partial(log.info, "comparison %s: %s", compared.name)
            parent.run_stage(
                "compare",
                compared.entries[0].chain,
                log=compared.folder / "compare.log",
                on_event=lambda event: tell(event["message"]) if event["event"] == "note" else None,
                inherit=[lock],
                options=comparison.request(compared),
            )
            stage_sync.publish_folder(compared.workspace, compared.folder)

    def _chains(self) -> list[Chain]:
        return [entry.chain for entry in self.comparison.entries]

    def _refresh(self, since: float = 0.0) -> None:
        """Have at hand what is there of all the runs, and of the page."""
        compared = self.comparison
        refresh(self._chains(), since)
        compared.workspace.storage.refresh([compared.folder], since=since)

    @property
    def page(self) -> str | None:
        return page_url(self.comparison.workspace, self.comparison.folder / "index.html")

    def headline(self) -> str:
        """Who leads and where to read more, from the finished page."""
        folder, shown = self.comparison.folder, self.comparison.workspace.shown
        facts = read_json(folder / "ranking.json")
        if not facts:
            return f"the page is in {shown(folder)}"
        page = self.page or shown(folder / "index.html")
        try:
            best, count, data = facts["ranking"][0], len(facts["ranking"]), facts["dataset"]["label"]
            name, accuracy = best["architecture"]["name"], f"{best['accuracy']:.2%}"
        except (KeyError, IndexError, TypeError, ValueError):  # of the right size, so nobody looked into it
            return f"ranking.json is damaged (luigi --module tasks Verify); ranking: {page}"
        ranked = f"{count} configuration{'s' if count > 1 else ''} ranked"
        return f"{ranked}; best: {name}, {accuracy} ({data}); ranking: {page}"


tell_results(Compare, lambda task: f"comparison {task.name}")


def _plan(values: dict[str, Any]) -> Comparison:
    seeds = [int(seed) for seed in values["seeds"].split(",") if seed]
    workspace = workspace_at(values["workspace"])
    return comparison.plan(json.loads(values["configs"]), seeds, workspace, values["name"], values["reports"])


def _state(path: str) -> tuple[int, int] | None:
    """What changes when a configuration file does; None for one of the ready-made files."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _listed(configs: str | Sequence[str]) -> list[str]:
    """Paths and patterns between commas, or as a JSON list, with `~` and `$NAME` filled in."""
    paths = [expanded(path, "--configs") for path in _split(configs)]
    if not paths:
        raise ConfigError(f"--configs: found {configs!r}, expected at least one path")
    return paths


def _split(configs: str | Sequence[str]) -> list[str]:
    if not isinstance(configs, str):
        return [str(path) for path in configs]
    if os.path.exists(configs):  # whatever characters are in its name
        return [configs]
    if not configs.lstrip().startswith("["):
        return [path.strip() for path in configs.split(",") if path.strip()]
    try:
        value = json.loads(configs)
    except ValueError as error:
        raise ConfigError(f"--configs: not a JSON list ({error}); paths between commas will do") from None
    if not all(isinstance(path, str) for path in value):
        raise ConfigError(f"--configs: found {configs}, expected a list of paths")
    return value


def _seeds(seeds: str | Sequence[int]) -> list[int]:
    given = seeds.strip("[] ").split(",") if isinstance(seeds, str) else [str(seed) for seed in seeds]
    try:
        found = [int(seed) for seed in given if seed.strip()]
    except ValueError:
        found = [-1]
    if not all(0 <= seed < 2**31 for seed in found):
        raise ConfigError(f"--seeds: found {seeds!r}, expected whole numbers from 0 to {2**31 - 1}, as in 0,1,2")
    return list(dict.fromkeys(found))
