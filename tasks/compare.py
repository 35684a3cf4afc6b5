"""Comparing configurations and seeds: `luigi --module tasks Compare --configs '["config/vgg11.yaml", …]'`."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import luigi
import msgspec

from pipeline import comparison, stage_sync
from pipeline.comparison import Comparison
from pipeline.errors import ConfigError
from pipeline.files import expanded, read_json
from pipeline.process import parent
from pipeline.text import counted
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

#: What the tasks of this process compare, by the values of their parameters; the files as they were read last.
_planned: dict[tuple[Any, ...], Comparison] = {}


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

    @classmethod
    def filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """With patterns expanded and the name filled in."""
        values = super().filled_in(values)
        files, seeds = comparison.expand(_listed(values["configs"])), _seeds(values["seeds"])
        check_name("--name", values["name"])
        workspace = workspace_at(values["workspace"])
        planned = comparison.plan(files, seeds, workspace, values["name"], values["reports"])
        values |= {"configs": json.dumps(files), "seeds": ",".join(map(str, seeds)), "name": planned.name}
        _planned[tuple(values.values())] = planned
        return values

    @property
    def what(self) -> str:
        return f"comparison {self.name}"

    @property
    def comparison(self) -> Comparison:
        return _planned[tuple(self.param_kwargs[name] for name, _ in self.get_params())]

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
        with working(), compared.workspace.hold(lock, self.what, wait, functools.cache(log.info)) as descriptor:
            self._refresh(since=time.monotonic())
            reasons = compared.why()
            if reasons:
                self._write(compared, descriptor, reasons)

    def _write(self, compared: Comparison, lock: int, reasons: list[str]) -> None:
        data = compared.entries[0].chain.dataset_folder()
        with recorded(compared.workspace, reasons, stage="compare", run=compared.name):
            if data is not None:
                compared.workspace.fetch(data)
            tell = functools.partial(log.info, "%s: %s", self.what)
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
            best, data = facts["ranking"][0], facts["dataset"]["label"]
            ranked = counted(len(facts["ranking"]), "configuration")
            name, accuracy = best["architecture"]["name"], f"{best['accuracy']:.2%}"
        except (KeyError, IndexError, TypeError, ValueError):  # of the right size, so nobody looked into it
            return f"ranking.json is damaged (luigi --module tasks Verify); ranking: {page}"
        return f"{ranked} ranked; best: {name}, {accuracy} ({data}); ranking: {page}"


tell_results(Compare)


def _listed(configs: str | Sequence[str]) -> list[str]:
    """Paths and patterns between commas, or as a JSON list, with `~` and `$NAME` filled in."""
    if not isinstance(configs, str):
        paths = [str(path) for path in configs]
    elif os.path.exists(configs):  # whatever characters are in its name
        paths = [configs]
    elif configs.lstrip().startswith("["):
        try:
            paths = msgspec.json.decode(configs, type=list[str])
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise ConfigError(f"--configs: not a JSON list of paths ({error}); paths between commas will do") from None
    else:
        paths = [path.strip() for path in configs.split(",") if path.strip()]
    if not paths:
        raise ConfigError(f"--configs: found {configs!r}, expected at least one path")
    return [expanded(path, "--configs") for path in paths]


def _seeds(seeds: str | Sequence[int]) -> list[int]:
    given = seeds.strip("[] ").split(",") if isinstance(seeds, str) else [str(seed) for seed in seeds]
    try:
        found = [int(seed) for seed in given if seed.strip()]
    except ValueError:
        found = [-1]
    if not all(0 <= seed < 2**31 for seed in found):
        raise ConfigError(f"--seeds: found {seeds!r}, expected whole numbers from 0 to {2**31 - 1}, as in 0,1,2")
    return list(dict.fromkeys(found))
