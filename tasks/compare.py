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
from tasks.base import PluginTask, log_results
from tasks.configurations import check_name, register_config
from tasks.log import log
from tasks.results import StoredFile, target
from tasks.settings import vgg
from tasks.stage import StageTask, checking, recorded, working
from tasks.stages import Evaluate, Report
from tasks.workspaces import page_url, refresh_if_stale, workspace_at

#: Comparison of each task in this process, by the task's parameter values; keeps the files as last read.
_planned: dict[tuple[Any, ...], Comparison] = {}


class Compare(PluginTask):
    """Train any missing runs of several configurations and seeds, and rank them on one page."""

    configs = luigi.Parameter(
        description="YAML files to compare: paths or patterns, e.g. config/vgg11.yaml,config/vgg1*-bn.yaml, or a JSON "
        "list of them; no default"
    )
    seeds = luigi.Parameter(
        default="", description="seeds to train each configuration with, e.g. 0,1,2; default: the seed in its file"
    )
    name = luigi.Parameter(
        default="", description="folder name of the comparison, e.g. depth; default: derived from the configurations"
    )
    reports = luigi.BoolParameter(default=False, description="also export and report each run; default: no")

    @classmethod
    def resolve(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().resolve(values)
        files, seeds = comparison.expand(_parse_configs(values["configs"])), _parse_seeds(values["seeds"])
        check_name("--name", values["name"])
        workspace = workspace_at(values["workspace"])
        planned = comparison.plan(files, seeds, workspace, values["name"], values["reports"])
        values |= {"configs": json.dumps(files), "seeds": ",".join(map(str, seeds)), "name": planned.name}
        _planned[tuple(values.values())] = planned
        return values

    @property
    def display_name(self) -> str:
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
                settings=register_config(entry.source, entry.chain.given),
            )
            for entry in self.comparison.entries
        ]

    def complete(self) -> bool:
        with checking():
            compared = self.comparison
            self._refresh()
            return compared.complete() or (refresh_if_stale(*self._chains()) and compared.complete())

    def output(self) -> luigi.LocalTarget | StoredFile:
        return target(self.comparison.workspace, self.comparison.folder / MANIFEST)

    def run(self) -> None:
        """Write the page in a child process, unless another command has just done it."""
        compared = self.comparison
        lock = compared.workspace.lock(f"comparison.{compared.name}")
        wait = vgg().overlap == "wait"
        with working(), compared.workspace.hold(lock, self.display_name, wait, functools.cache(log.info)) as descriptor:
            self._refresh(since=time.monotonic())
            reasons = compared.why()
            if reasons:
                self._write(compared, descriptor, reasons)

    def _write(self, compared: Comparison, lock: int, reasons: list[str]) -> None:
        data = compared.entries[0].chain.dataset_folder()
        with recorded(compared.workspace, reasons, stage="compare", run=compared.name):
            if data is not None:
                compared.workspace.fetch(data)
            parent.run_stage(
                "compare",
                compared.entries[0].chain,
                log=compared.folder / "compare.log",
                on_event=self._on_event,
                inherit=[lock],
                options=comparison.request(compared),
            )
            stage_sync.publish_folder(compared.workspace, compared.folder)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            log.info("%s: %s", self.display_name, event["message"])

    def _chains(self) -> list[Chain]:
        return [entry.chain for entry in self.comparison.entries]

    def _refresh(self, since: float = 0.0) -> None:
        compared = self.comparison
        refresh(self._chains(), since)
        compared.workspace.storage.refresh([compared.folder], since=since)

    @property
    def page(self) -> str | None:
        return page_url(self.comparison.workspace, self.comparison.folder / "index.html")

    def headline(self) -> str:
        folder, shown = self.comparison.folder, self.comparison.workspace.shown
        facts = read_json(folder / "ranking.json")
        if not facts:
            return f"the page is in {shown(folder)}"
        page = self.page or shown(folder / "index.html")
        try:
            best, data = facts["ranking"][0], facts["dataset"]["label"]
            ranked = counted(len(facts["ranking"]), "configuration")
            name, accuracy = best["architecture"]["name"], f"{best['accuracy']:.2%}"
        except (KeyError, IndexError, TypeError, ValueError):  # damaged, but of the recorded size
            return f"ranking.json is damaged (luigi --module tasks Verify); ranking: {page}"
        return f"{ranked} ranked; best: {name}, {accuracy} ({data}); ranking: {page}"


log_results(Compare)


def _parse_configs(configs: str | Sequence[str]) -> list[str]:
    """Split comma-separated paths or a JSON list, and expand `~` and `$NAME`."""
    if not isinstance(configs, str):
        paths = [str(path) for path in configs]
    elif os.path.exists(configs):  # even with a comma in its name
        paths = [configs]
    elif configs.lstrip().startswith("["):
        try:
            paths = msgspec.json.decode(configs, type=list[str])
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise ConfigError(
                f"--configs: not a JSON list of paths ({error}); comma-separated paths work, too"
            ) from None
    else:
        paths = [path.strip() for path in configs.split(",") if path.strip()]
    if not paths:
        raise ConfigError(f"--configs: found {configs!r}, expected at least one path")
    return [expanded(path, "--configs") for path in paths]


def _parse_seeds(seeds: str | Sequence[int]) -> list[int]:
    given = seeds.strip("[] ").split(",") if isinstance(seeds, str) else [str(seed) for seed in seeds]
    try:
        parsed = [int(seed) for seed in given if seed.strip()]
    except ValueError:
        parsed = [-1]
    if not all(0 <= seed < 2**31 for seed in parsed):
        raise ConfigError(f"--seeds: found {seeds!r}, expected whole numbers from 0 to {2**31 - 1}, as in 0,1,2")
    return list(dict.fromkeys(parsed))
