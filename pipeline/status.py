"""The facts behind `Status`: which stages are done, what would run and why, and which model is current. Read-only."""

from __future__ import annotations

import fnmatch
from typing import Any

from pipeline.errors import WorkspaceError
from pipeline.files import human_size, json_cache
from pipeline.retraining import generations, periods, registry
from pipeline.storage import LOCAL, locks
from pipeline.text import counted, printable
from pipeline.workspace import Run, Workspace
from pipeline.workspace.freshness import STAGES, UPSTREAM, Chain, config_changes, shown_source

SCHEMA = 2

DONE, WILL_RUN, MAY_RUN = "done", "will run", "may run"

#: The text output lists at most this many generations.
MAX_SHOWN = 5


def gather(chain: Chain) -> dict[str, Any]:
    """Return the content of `Status --json`. `done` is true if `Report` of exactly this chain would run nothing."""
    with json_cache():
        stages = _stages(chain)
    pointer, problem = _current(chain)
    run = chain.run()
    trains = any(stage["stage"] == "train" and stage["state"] != DONE for stage in stages)
    kept = checkpoints(run) if run and trains else []
    return {
        "schema": SCHEMA,
        "run": chain.run_id,
        "generation": chain.generation or None,
        "dataset": {
            "name": chain.given.data.name,
            "source": shown_source(chain.given.data),
            "change": (chain.source_record() or {}).get("change"),
        },
        "done": all(stage["state"] == DONE for stage in stages),
        "stages": stages,
        "config_changes": config_changes(chain.manifest("train"), chain.config),
        "checkpoint": kept[-1] if kept else None,
        "current": pointer,
        "current_problem": problem,
        # Without a current model nothing was retrained: do not list all runs of a store for nothing.
        "generations": _generations(chain, pointer) if pointer or problem else [],
        "next_generation": _next(chain) if pointer and not chain.generation else None,
    }


def sizes(workspace: Workspace) -> dict[str, dict[str, int]]:
    """Count the files and bytes of each kind: `runs`, `datasets`, `trash`, `work`, …

    For a workspace in a store, counts what is in the store; `cache` is the local copy, including work in progress.
    """
    storage = workspace.storage
    storage.refresh([workspace.root])
    kinds: dict[str, dict[str, int]] = {}
    for path, size in sorted(storage.files(workspace.root).items()):
        kind = kinds.setdefault(path.partition("/")[0].partition(".")[0], {"files": 0, "bytes": 0})
        kind["files"] += 1
        kind["bytes"] += size
    if storage is not LOCAL:
        here = LOCAL.files(workspace.root).values()
        kinds["cache"] = {"files": len(here), "bytes": sum(here)}
    return kinds


def lines(facts: dict[str, Any], config_path: str) -> list[str]:
    """Format the facts of `gather` for people."""
    generation = f", generation {facts['generation']}" if facts["generation"] else ""
    about = facts["dataset"]
    output = [f"{config_path}: {facts['run']}{generation} on {about['name']} from {about['source']}"]
    for stage in facts["stages"]:
        why = f"{stage['made']}  {stage['folder']}" if stage["state"] == DONE else "; ".join(stage["reasons"])
        output.append(f"  {stage['stage']:<9} {stage['state']:<8}  {why}")
        if stage["worker"]:
            output.append(f"            being worked on by {stage['worker']}")
    if change := about["change"]:
        details = f": {change['what']}" if change["what"] else ""
        output.append(printable(f"  the data set has changed since {change['since']}{details}"))
    if pointer := facts["current"]:
        accuracy = f"{pointer['accuracy']:.2%}"
        output.append(f"  the current model is {pointer['run']}, accuracy {accuracy}, since {pointer['since']}")
    if facts["current_problem"]:
        state = "is unusable" if pointer else "is unknown"
        output.append(f"  the current model {state}: {facts['current_problem']}")
    if known := facts["generations"]:
        more = f", and {len(known) - MAX_SHOWN} older ones" if len(known) > MAX_SHOWN else ""
        which = "" if facts["generation"] else " (--generation NAME shows one)"
        output.append(f"  generations{which}: {', '.join(_describe(item) for item in known[:MAX_SHOWN])}{more}")
    if due := facts["next_generation"]:
        when = f"due now: {'; '.join(due['reasons'])}" if due["reasons"] else f"due {due['due']}"
        output.append(f"  next generation: {due['name']}, {when}")
    trains = any(stage["stage"] == "train" and stage["state"] == WILL_RUN for stage in facts["stages"])
    effect = "takes effect when it trains" if trains else "does not retrain"
    output += [f"  config changed: {line} ({effect})" for line in facts["config_changes"]]
    for kind, size in facts.get("sizes", {}).items():
        output.append(f"  size of {kind:<11} {human_size(size['bytes']):>8} in {counted(size['files'], 'file')}")
    if facts["checkpoint"]:
        rule = "the next one resumes from it, unless keys under `training` have changed since"
        output.append(f"  an unfinished training left {facts['checkpoint']}; {rule}")
    return output


def worker_on(run: Run, stage: str) -> locks.Holder | None:
    """Return who is working on a stage: the command that runs it, or else a job that outlived its command."""
    job = locks.holder(run.job_lock) if stage == "train" else None
    return run.workspace.holder(run.lock(stage)) or job


def checkpoints(run: Run) -> list[str]:
    """Return the names of a run's checkpoints, newest last."""
    storage = run.workspace.storage
    storage.refresh([run.checkpoints])
    names = {*(path.name for path in run.workspace.listed(run.checkpoints)), *storage.names(run.checkpoints)}
    return sorted(fnmatch.filter(names, "step-*.npz"))


def _stages(chain: Chain) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    will_run: set[str] = set()
    run = chain.run()
    for stage in STAGES:
        reasons, state = chain.why(stage), WILL_RUN
        before = ", ".join(upstream for upstream in UPSTREAM.get(stage, ()) if upstream in will_run)
        if before:
            state = WILL_RUN if reasons else MAY_RUN
            reasons = [f"after {before}" + ("" if reasons else ", if its output changes")]
        elif not reasons:
            state = DONE
        if state != DONE:
            will_run.add(stage)
        made, folder = chain.manifest(stage) if state == DONE else None, chain.folder(stage)
        worker = worker_on(run, stage) if run and stage != "dataset" else None
        stages.append(
            {
                "stage": stage,
                "state": state,
                "reasons": reasons,
                "made": made["created"] if made else None,
                "folder": chain.workspace.shown(folder) if made and folder else None,
                "worker": str(worker) if worker else None,
            }
        )
    return stages


def _current(chain: Chain) -> tuple[dict[str, Any] | None, str | None]:
    """Return the current model, and why it is unknown or the gate cannot compare with it."""
    path = chain.workspace.current(chain.config)
    try:
        pointer, problem = registry.read(path), registry.baseline_problem(chain.workspace, path)
    except WorkspaceError as error:
        return None, str(error)
    keys = ("run", "generation", "accuracy", "since")
    return {key: getattr(pointer, key) for key in keys} if pointer else None, problem or None


def _generations(chain: Chain, pointer: dict[str, Any] | None) -> list[dict[str, Any]]:
    made = generations.find(chain.workspace, chain.config)
    rolled_back = registry.rolled_back(chain.workspace.current(chain.config))
    return [
        {
            "name": item.name,
            "label": label,
            "run": item.run.place,
            "trained": item.trained,
            "accuracy": item.accuracy,
            "outcome": item.outcome or None,
            "current": pointer is not None and pointer["run"] == item.run.place,
            "rolled_back": item.run.place in rolled_back,
        }
        for item, label in zip(made, generations.labels(made), strict=True)
    ]


def _next(chain: Chain) -> dict[str, Any]:
    name, day, reasons = generations.next_due(chain, periods.today())
    return {"name": name, "due": day.isoformat(), "reasons": reasons}


def _describe(item: dict[str, Any]) -> str:
    outcome = generations.ROLLED_BACK if item["rolled_back"] else item["outcome"]
    words = [outcome or "not decided yet", *(["current"] if item["current"] else [])]
    words += [f"{item['accuracy']:.2%}"] if item["accuracy"] is not None else []
    return f"{item['label']} ({', '.join(words)})"
