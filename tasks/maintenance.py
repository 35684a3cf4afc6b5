"""Looking after a workspace: what would run and why (Status), setting a stage aside (SetAside), re-hashing (Verify)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import luigi

from pipeline import current, events, locks, manifest
from pipeline.chain import STAGES, UPSTREAM, Chain, all_upstream, drift, shown_source
from pipeline.errors import PipelineError, WorkspaceError, from_os_error
from pipeline.workspace import RUN_STAGES, Run, Workspace
from tasks.base import ChainTask, PluginTask, workspace_at
from tasks.defaults import exit_with

DAMAGED = 4


class Command(ChainTask):
    """A task that does its work whenever it is called, and leaves no target."""

    without_scheduler = True
    done = False

    def complete(self) -> bool:
        return self.done

    def run(self) -> None:
        self.work()
        self.done = True

    def work(self) -> None:
        raise NotImplementedError

    def on_failure(self, exception: BaseException) -> object:
        return str(exception) if isinstance(exception, PipelineError) else super().on_failure(exception)


class Status(Command):
    """Print, for each stage, whether it is done or would run, and why."""

    def work(self) -> None:
        print("\n".join(status_lines(self.chain, self.config)))


class SetAside(Command):
    """Move a finished stage to the workspace's trash, so that it runs again. A preview unless --confirm."""

    stage = luigi.ChoiceParameter(choices=list(STAGES), description="the stage to set aside")
    confirm = luigi.BoolParameter(default=False, description="really move the files; without it only a preview")

    def work(self) -> None:
        chain = self.chain
        folder = chain.folder(self.stage)
        if folder is None or not folder.exists():
            raise WorkspaceError(f"there is no finished {self.stage} of {chain.run_id} to set aside")
        trash = chain.workspace.trash
        target = trash / f"{manifest.now().replace(':', '')}-{folder.parent.name}-{folder.name}"
        size, shown = chain.workspace.size_of(folder), chain.workspace.shown
        after = [stage for stage in STAGES if self.stage in all_upstream(stage)]
        moving = "moving" if self.confirm else "would move"
        print(f"{moving} {shown(folder)} ({size / 1e6:.1f} MB)\n  to {shown(target)}")
        print(f"  the next run makes {self.stage} again" + (f", then as needed {', '.join(after)}" if after else ""))
        if not self.confirm:
            print("  nothing was done: add --confirm to do it")
            return
        what, mirror = f"{self.stage} {chain.run_id}", chain.workspace.mirror
        try:
            with contextlib.ExitStack() as held:
                for lock in self._locks(chain, folder):
                    held.enter_context(locks.hold(lock, what, wait=False, mirror=mirror))
                if self.stage == "train" and (run := chain.run()):
                    held.enter_context(locks.hold(run.job_lock, what, wait=False))
                if self.stage == "dataset":
                    held.enter_context(locks.hold(chain.workspace.readers_lock(folder.name), what, wait=False))
                chain.workspace.move(folder, target)
        except OSError as error:
            raise from_os_error(error, "move the stage to the trash") from error
        events.record(chain.workspace, "set aside", stage=self.stage, run=chain.run_id, to=shown(target))
        events.publish(chain.workspace)

    def _locks(self, chain: Chain, folder: Path) -> list[Path]:
        """The locks of those who write the folder and, within the run, of those who read it."""
        run = chain.run()
        if run is None or self.stage == "dataset":
            source = chain.workspace.source_pointer(chain.config.data).stem
            return [chain.workspace.lock(source), chain.workspace.lock(folder.name)]
        readers = [stage for stage in RUN_STAGES if self.stage in all_upstream(stage)]
        return [run.lock(stage) for stage in (self.stage, *readers)]


class Verify(PluginTask):
    """Re-hash every file of every data set, run and comparison in a workspace; exit code 4 when one is damaged."""

    without_scheduler = True

    workspace = luigi.Parameter(default="artifacts", description="the folder or URL that holds data sets and runs")
    done = False

    def complete(self) -> bool:
        return self.done

    def run(self) -> None:
        workspace = workspace_at(self.workspace)
        place = workspace.shown(workspace.root)
        found, files = verify(workspace)
        for line in found:
            print(f"damaged: {line}")
        print(f"{files} files checked in {place}: " + (f"{len(found)} damaged" if found else "all as recorded"))
        if found:
            exit_with(DAMAGED)
            raise WorkspaceError(f"{place}: {len(found)} problems found; restore the files or set the stage aside")
        self.done = True

    def on_failure(self, exception: BaseException) -> object:
        return str(exception) if isinstance(exception, PipelineError) else super().on_failure(exception)


def verify(workspace: Workspace) -> tuple[list[str], int]:
    """Every file that is missing or does not have its recorded SHA-256, and how many files were checked."""
    if workspace.mirror:
        workspace.mirror.know_all()
    folders = [path for path in sorted((workspace.root / "datasets").glob("*")) if (path / "manifest.json").exists()]
    for run in sorted(workspace.runs.glob("*/*")):
        folders += [run / stage for stage in (*RUN_STAGES, "promote") if (run / stage).exists()]
    folders += [path for path in workspace.comparisons() if (path / "manifest.json").exists()]
    found, files = [], 0
    for folder in folders:
        recorded = manifest.read(folder)
        place = folder.relative_to(workspace.root)
        if recorded is None:
            found.append(f"{place}: no readable manifest.json (unfinished, or damaged)")
            continue
        files += len(recorded["files"])
        damage = manifest.damage(folder, recorded, workspace.size, workspace.sha256)
        if trainer := recorded["details"].get("trainer"):  # not needed by any stage, but to go on exactly
            files += 1
            about = {"files": {"trainer.npz": trainer}}
            damage += manifest.damage(folder, about, workspace.size, workspace.sha256)
        found += [f"{place.parent / problem}" for problem in damage]
    return found, files


def _worker_on(chain: Chain, stage: str) -> dict[str, object] | None:
    """Who works on a stage: the command that asked for it, else a job that outlived its command."""
    run = chain.run()
    if run is None:
        return None
    mirror = chain.workspace.mirror
    here = locks.holder(run.lock(stage)) or (locks.holder(run.job_lock) if stage == "train" else None)
    return here or (mirror.holder(run.lock(stage).stem) if mirror else None)


def status_lines(chain: Chain, config_path: str) -> list[str]:
    """The lines of `Status`."""
    data = chain.config.data
    generation = f", generation {chain.generation}" if chain.generation else ""
    lines = [f"{config_path}: {chain.run_id}{generation} on {data.name} from {shown_source(data)}"]
    will_run: set[str] = set()
    run = chain.run()
    for stage in STAGES:
        reasons = chain.why(stage)
        before = [upstream for upstream in UPSTREAM.get(stage, ()) if upstream in will_run]
        if before and not reasons:
            lines.append(f"  {stage:<9} may run   after {', '.join(before)}, if that gives something new")
            will_run.add(stage)
        elif reasons:
            will_run.add(stage)
            why = f"after {', '.join(before)}" if before else "; ".join(reasons)
            lines.append(f"  {stage:<9} will run  {why}")
        else:
            made = (chain.manifest(stage) or {}).get("created", "")
            lines.append(f"  {stage:<9} done      {made}  {chain.workspace.shown(chain.folder(stage))}")  # type: ignore[arg-type]
        if stage != "dataset" and (owner := _worker_on(chain, stage)):
            lines.append(f"            being worked on by {locks.describe(owner)}")
    pointer = current.read(chain.workspace.current(chain.config))
    if pointer:
        lines.append(f"  the current model is {pointer.run}, accuracy {pointer.accuracy:.2%}, since {pointer.since}")
    lines += [f"  drift: {line} (does not retrain)" for line in drift(chain.manifest("train"), chain.config)]
    kept = _checkpoints(chain, run) if run and "train" in will_run else []
    if kept:
        lines.append(f"  an unfinished training left {kept[-1]}; it goes on from there")
    return lines


def _checkpoints(chain: Chain, run: Run) -> list[str]:
    """The names of a run's checkpoints, newest last."""
    names = [path.name for path in run.checkpoints.glob("step-*.npz")]
    if chain.workspace.mirror:
        chain.workspace.mirror.know_folders([run.checkpoints])
        names += [name for name in chain.workspace.mirror.names(run.checkpoints) if name.startswith("step-")]
    return sorted(names)


__all__ = ["SetAside", "Status", "Verify", "status_lines", "verify"]
