"""Comparisons of several configurations and seeds on one data set: which runs to compare, and whether they are done.

Imports nothing heavy; `ranking` and `page` render the page. A configuration with its own seed is the run without a
generation. With another seed N it is the generation `seed-N`, as a changed seed alone does not start a training.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.files import json_cache
from pipeline.text import counted
from pipeline.workspace import Workspace, manifest, run_id, seed_generation, source_key, with_generation_seed
from pipeline.workspace.freshness import Chain, shown_source


@dataclass(frozen=True)
class Entry:
    """One run of a comparison: the configuration file as the user named it, the seed, and the run's chain."""

    source: str
    seed: int
    chain: Chain


@dataclass(frozen=True)
class Comparison:
    """The runs to rank, and where their page goes. With `reports`, each run also gets its own report."""

    workspace: Workspace
    name: str
    entries: tuple[Entry, ...]
    reports: bool = False

    @property
    def folder(self) -> Path:
        return self.workspace.comparison(self.name)

    def inputs(self) -> dict[str, str | None]:
        """Return the inputs of the page: the digest of each run's metrics."""
        return {
            entry.chain.run_id: manifest.digest(entry.chain.manifest("evaluate"), "metrics.json")
            for entry in self.entries
        }

    def waiting_for(self) -> list[Entry]:
        """Return the runs that are not done yet."""
        known = ("dataset",) if self.entries[0].chain.complete("dataset") else ()  # all runs share it
        needed = "report" if self.reports else "evaluate"
        return [entry for entry in self.entries if not entry.chain.complete(needed, known)]

    def why(self) -> list[str]:
        """Return why the page must be rendered once its runs are done; empty if it is up to date."""
        inputs = self.inputs()
        recorded = manifest.read(self.folder)
        gone = [name for name in recorded["inputs"] if name not in inputs] if recorded else []
        problems = self.workspace.problems(self.folder, "compare", inputs)
        return problems + [f"{name} is no longer compared" for name in gone]

    def complete(self) -> bool:
        """Whether the page and all its runs are up to date. Reads only manifests and file sizes."""
        with json_cache():
            return not self.why() and not self.waiting_for()


def plan(
    sources: Sequence[str], seeds: Sequence[int], workspace: Workspace, name: str = "", reports: bool = False
) -> Comparison:
    """Plan a comparison of configuration files with each of the seeds, or with their own seeds if none are given.

    Raises `ConfigError` if a file is invalid, if two files describe the same run, or if their data sets differ.
    """
    configs = {source: configuration.load(source) for source in dict.fromkeys(sources)}
    _check_data(configs)
    entries = [
        _entry(source, config, seed, workspace)
        for source, config in configs.items()
        for seed in dict.fromkeys(seeds or [config.training.seed])
    ]
    _check_distinct(entries)
    return Comparison(workspace, name or _name(configs, seeds, entries), tuple(entries), reports)


def request(compared: Comparison) -> dict[str, Any]:
    """Return the options that describe the comparison to its process."""
    return {
        "name": compared.name,
        "reports": compared.reports,
        "entries": [
            {
                "source": entry.source,
                "seed": entry.seed,
                "config": configuration.to_dict(entry.chain.config),
                "generation": entry.chain.generation,
            }
            for entry in compared.entries
        ],
    }


def expand(patterns: Iterable[str]) -> list[str]:
    """Expand paths and globs to configuration files, in order. Raises `ConfigError` if a pattern matches none."""
    sources: list[str] = []
    for pattern in patterns:
        given = Path(pattern)
        if not glob.has_magic(pattern) or os.path.isfile(pattern):  # Path.is_file raises for names that are too long
            sources.append(pattern)
            continue
        matches = sorted(glob.glob(pattern))
        if not matches and given.parent.as_posix() in (".", "config"):
            names = glob.glob(given.name, root_dir=configuration.ready_made_folder())
            matches = [f"config/{name}" for name in sorted(names)]
        if not matches:
            raise ConfigError(
                f"--configs: no file matches {pattern}; expected files, a pattern, or a JSON list of files"
            )
        sources += matches
    return list(dict.fromkeys(sources))


def _entry(source: str, config: Config, seed: int, workspace: Workspace) -> Entry:
    generation = "" if seed == config.training.seed else seed_generation(seed)
    return Entry(source, seed, Chain(workspace, with_generation_seed(config, generation), generation))


def _check_data(configs: dict[str, Config]) -> None:
    first = next(iter(configs))
    for source, config in configs.items():
        mine, other = config.data, configs[first].data
        if (mine.name, source_key(mine)) != (other.name, source_key(other)):
            raise ConfigError(
                f"{source}: its data set is {mine.name} from {shown_source(mine)}, that of {first} is "
                f"{other.name} from {shown_source(other)}; only accuracies on the same images can be compared"
            )
        if mine.test_fraction != other.test_fraction:
            raise ConfigError(
                f"{source}: data.test_fraction is {mine.test_fraction:g}, that of {first} is {other.test_fraction:g}; "
                "only accuracies on the same images can be compared"
            )


def _check_distinct(entries: Sequence[Entry]) -> None:
    seen: dict[str, Entry] = {}
    for entry in entries:
        other = seen.setdefault(run_id(entry.chain.config.architecture, entry.chain.generation), entry)
        if other is not entry:
            raise ConfigError(
                f"{entry.source}: the same run as {other.source} ({entry.chain.run_id}): runs differ only "
                "by architecture or seed: change architecture, or use --seeds"
            )


def _name(configs: dict[str, Config], seeds: Sequence[int], entries: Sequence[Entry]) -> str:
    """Return a name for the comparison, the same for the same runs."""
    identity = [
        [run_id(entry.chain.given.architecture, entry.chain.generation), source_key(entry.chain.given.data)]
        for entry in entries
    ]
    digest = hashlib.sha256(json.dumps(sorted(identity)).encode()).hexdigest()[:8]
    name = f"{counted(len(configs), 'configuration')} {counted(len(set(seeds)) or 1, 'seed')} {digest}"
    return name.replace(" ", "-").replace(",", "")  # a thousands separator
