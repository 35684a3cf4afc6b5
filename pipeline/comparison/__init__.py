"""Comparisons: several configurations and seeds on one data set. Which runs one is about, and whether it is done.

Reads configurations and manifests only, and imports nothing heavy; the page itself is made by `ranking` and `page`
(`python -m pipeline.comparison`). A configuration's own seed means its plain run; any other seed N means its
generation `seed-N`, since a seed alone does not retrain.
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
from pipeline.files import each_read_once
from pipeline.workspace import MANIFEST, Workspace, manifest, seed_generation, source_key, with_generation_seed
from pipeline.workspace.freshness import Chain, shown_source


@dataclass(frozen=True)
class Entry:
    """One run of a comparison: the configuration file as the user named it, the seed, the chain that makes the run."""

    source: str
    seed: int
    chain: Chain


@dataclass(frozen=True)
class Comparison:
    """Runs to rank, and where their page is. `reports` asks for the full report of each run as well."""

    workspace: Workspace
    name: str
    entries: tuple[Entry, ...]
    reports: bool = False

    @property
    def folder(self) -> Path:
        return self.workspace.comparison(self.name)

    @property
    def needs(self) -> str:
        """The stage that must be complete for each run."""
        return "report" if self.reports else "evaluate"

    def inputs(self) -> dict[str, str | None]:
        """What the page is made from: for each run, the digest of its metrics."""
        return {
            entry.chain.run_id: manifest.digest(entry.chain.manifest("evaluate"), "metrics.json")
            for entry in self.entries
        }

    def waiting_for(self) -> list[Entry]:
        """The runs that are not done yet."""
        known = ("dataset",) if self.entries[0].chain.complete("dataset") else ()  # it is the same for all
        return [entry for entry in self.entries if not entry.chain.complete(self.needs, known)]

    def why(self) -> list[str]:
        """Why the page has to be made, its runs being done. Empty: it is up to date."""
        inputs = self.inputs()
        gone = [
            f"made with {name}, which is no longer compared"
            for name in (manifest.read(self.folder) or {"inputs": {}})["inputs"]
            if name not in inputs
        ]
        here_only = self.workspace.unpublished(self.folder / MANIFEST)
        return here_only + manifest.problems(self.folder, "compare", inputs, self.workspace.size) + gone

    def complete(self) -> bool:
        """True when the page is up to date and so is every run on it. Reads manifests and file sizes only."""
        with each_read_once():
            return not self.why() and not self.waiting_for()


def plan(
    sources: Sequence[str], seeds: Sequence[int], workspace: Workspace, name: str = "", reports: bool = False
) -> Comparison:
    """The comparison of these configuration files, each with each seed (with its own seed where none are given).

    Raises `ConfigError` when a file is not valid, when two files are the same run, and when they are about different
    data sets.
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
    """The comparison as the options of its process."""
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
    """The configuration files that paths and globs mean, in order. Raises `ConfigError` when one means none."""
    found: list[str] = []
    for pattern in patterns:
        given = Path(pattern)
        if not glob.has_magic(pattern) or given.is_file():
            found.append(pattern)
            continue
        inside = os.path.join(glob.escape(str(given.parent)), given.name)  # the folder's name may hold brackets, too
        matches = sorted(glob.glob(pattern)) or sorted(glob.glob(inside))
        if not matches and given.parent.as_posix() in (".", "config"):
            matches = [f"config/{file.name}" for file in sorted(configuration.ready_made_folder().glob(given.name))]
        if not matches:
            raise ConfigError(f"--configs: no file matches {pattern}; give a JSON list of files, or a pattern")
        found += matches
    return list(dict.fromkeys(found))


def _entry(source: str, config: Config, seed: int, workspace: Workspace) -> Entry:
    generation = "" if seed == config.training.seed else seed_generation(seed)
    return Entry(source, seed, Chain(workspace, with_generation_seed(config, generation), generation))


def _check_data(configs: dict[str, Config]) -> None:
    first = next(iter(configs))
    for source, config in configs.items():
        mine, other = config.data, configs[first].data
        if (mine.name, source_key(mine)) != (other.name, source_key(other)):
            raise ConfigError(
                f"{source}: its data set is {mine.name} from {shown_source(mine)}, but that of {first} is "
                f"{other.name} from {shown_source(other)}; only accuracies on the same images can be ranked"
            )


def _check_distinct(entries: Sequence[Entry]) -> None:
    seen: dict[str, Entry] = {}
    for entry in entries:
        other = seen.setdefault(entry.chain.run_id, entry)
        if other is not entry:
            raise ConfigError(
                f"{entry.source}: the same run as {other.source} ({entry.chain.run_id}): their architectures are "
                "equal, and no other key makes another run; compare architectures, or seeds with --seeds"
            )


def _name(configs: dict[str, Config], seeds: Sequence[int], entries: Sequence[Entry]) -> str:
    """A name that says how much is compared, and that the same question always gets."""
    identity = [[entry.chain.run_id, source_key(entry.chain.config.data)] for entry in entries]
    digest = hashlib.sha256(json.dumps(sorted(identity)).encode()).hexdigest()[:8]
    return f"{_counted(len(configs), 'configuration')}-{_counted(len(set(seeds)) or 1, 'seed')}-{digest}"


def _counted(number: int, noun: str) -> str:
    return f"{number}-{noun}" if number == 1 else f"{number}-{noun}s"
