"""Retention: which generations have expired, and moving them to the trash."""

from __future__ import annotations

import datetime
import time

from pipeline.errors import AlreadyRunning, from_os_error
from pipeline.retraining import generations, registry, trash
from pipeline.retraining.generations import PROMOTED, Generation
from pipeline.retraining.periods import period
from pipeline.retraining.rollback import former
from pipeline.workspace import events
from pipeline.workspace.freshness import Chain


def expired(chain: Chain, keep: int) -> list[Generation]:
    """The generations that are no longer kept, newest first.

    Kept are the newest `keep` of those that were promoted and not rolled back, the current one, the one that a roll
    back goes to, those that await the gate's decision, and the newest one, which a timer would otherwise make again.
    """
    pointer = registry.read(chain.workspace.current(chain.config))
    made = generations.find(chain.workspace, chain.config)
    rolled_back = pointer.rolled_back if pointer else []
    good = [item for item in made if item.outcome == PROMOTED and item.run.place not in rolled_back]
    latest = sorted(made, key=lambda item: period(item.name) or (datetime.date.min, datetime.date.min))[-1:]
    kept = {item.run.place for item in [*good[:keep], *made[:1], *latest]}
    if pointer:
        target, _ = former(chain.workspace, pointer)
        kept |= {entry.run for entry in (pointer, target) if entry}
    return [item for item in made if item.outcome and item.run.generation and item.run.place not in kept]


def prune(chain: Chain, chosen: list[Generation]) -> tuple[list[str], list[str]]:
    """Move generations to the trash; gives their new places, and why any others cannot be moved now."""
    moved, left = [], []
    path = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, path):  # so that nobody makes one of them current meanwhile
        pointer = registry.read(path)
        for item in chosen:
            if pointer and pointer.run == item.run.place:
                left.append(f"generation {item.name} has become the current one")
                continue
            try:
                moved.append(_move(chain, item))
            except AlreadyRunning as error:
                left.append(str(error))
    events.publish(chain.workspace)
    return moved, left


def _move(chain: Chain, item: Generation) -> str:
    workspace, run, started = chain.workspace, item.run, time.monotonic()
    size, target = workspace.storage.size_of(run.root), trash.target(workspace, run.root)
    try:
        with trash.whole_run(run, f"generation {item.name}"):
            workspace.move(run.root, target)
    except OSError as error:
        raise from_os_error(error, "move a generation to the trash") from error
    told = {"run": run.place, "generation": item.name, "bytes": size, "to": workspace.shown(target)}
    seconds = round(time.monotonic() - started, 3)
    events.record(workspace, "pruned", **registry.about(chain), **told, seconds=seconds)
    return workspace.shown(target)
