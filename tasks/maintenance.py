"""Looking after a workspace: what would run and why (Status), setting a stage aside (SetAside), re-hashing (Verify)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import luigi

from pipeline import status
from pipeline.errors import WorkspaceError, from_os_error
from pipeline.retraining import trash
from pipeline.storage import locks
from pipeline.verify import verify
from pipeline.workspace import RUN_FOLDERS, events
from pipeline.workspace.freshness import STAGES, Chain, all_upstream
from tasks.base import ChainTask, PluginTask
from tasks.exit_codes import DAMAGED, NOT_DONE, exit_with
from tasks.log import tell
from tasks.workspaces import workspace_at


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


class Status(Command):
    """Print, for each stage, whether it is done or would run, and why; exit code 3 when something would run."""

    json = luigi.BoolParameter(default=False, description="print the same as JSON; default: as text")

    def work(self) -> None:
        facts = status.gather(self.chain)
        tell(json.dumps(facts, indent=2) if self.json else "\n".join(status.lines(facts, self.config)))
        if not facts["done"]:
            exit_with(NOT_DONE)


class SetAside(Command):
    """Move a finished stage to the workspace's trash, so that it runs again. A preview unless --confirm."""

    stage = luigi.ChoiceParameter(
        choices=list(STAGES), description="the stage to set aside, e.g. train; has no default."
    )
    confirm = luigi.BoolParameter(default=False, description="move the files; default: preview")

    def work(self) -> None:
        chain = self.chain
        folder = chain.folder(self.stage)
        if folder is None or not folder.exists():
            raise WorkspaceError(f"there is no finished {self.stage} of {chain.run_id} to set aside")
        target = trash.target(chain.workspace, folder)
        size, shown = chain.workspace.size_of(folder), chain.workspace.shown
        after = [stage for stage in STAGES if self.stage in all_upstream(stage)]
        moving = "moving" if self.confirm else "would move"
        tell(f"{moving} {shown(folder)} ({size / 1e6:.1f} MB)\n  to {shown(target)}")
        tell(f"  the next run repeats {self.stage}" + (f", then {', '.join(after)} where needed" if after else ""))
        if not self.confirm:
            tell("  preview only: add --confirm to do it")
            return
        what = f"{self.stage} {chain.run_id}"
        try:
            with contextlib.ExitStack() as held:
                for lock in self._locks(chain, folder):
                    held.enter_context(chain.workspace.hold(lock, what))
                if self.stage == "train" and (run := chain.run()):
                    held.enter_context(locks.hold(run.job_lock, what, wait=False))
                if self.stage == "dataset":
                    held.enter_context(locks.hold(chain.workspace.readers_lock(folder.name), what, wait=False))
                chain.workspace.move(folder, target)
        except OSError as error:
            raise from_os_error(error, "move the stage to the trash") from error
        name = folder.name if self.stage == "dataset" else chain.run_id
        tell(f"  Restore --item {name} --confirm restores it")
        events.record(chain.workspace, "set aside", stage=self.stage, run=chain.run_id, to=shown(target))
        events.publish(chain.workspace)

    def _locks(self, chain: Chain, folder: Path) -> list[Path]:
        """The locks of those who write the folder and, within the run, of those who read it."""
        run = chain.run()
        if run is None or self.stage == "dataset":
            source = chain.workspace.source_pointer(chain.config.data).stem
            return [chain.workspace.lock(source), chain.workspace.lock(folder.name)]
        readers = [stage for stage in RUN_FOLDERS if self.stage in all_upstream(stage)]
        return [run.lock(stage) for stage in (self.stage, *readers)]


class Restore(Command):
    """Show what is in the trash, or bring one thing back from there. A preview unless --confirm."""

    item = luigi.Parameter(
        default="",
        description="what to restore: a generation, run or data set, e.g. 2026-W47; default: nothing, the "
        "trash is listed",
    )
    confirm = luigi.BoolParameter(default=False, description="move the files; default: preview")

    def work(self) -> None:
        workspace = self.chain.workspace
        known = trash.items(workspace)
        found = [entry for entry in known if not self.item or entry.is_named(self.item)]
        for entry in found:
            tell(f"{entry.place} ({', '.join(trash.contents(workspace, entry))}; since {entry.when})")
        if not self.item:
            tell(f"{len(found)} items in {workspace.shown(workspace.trash)}; --item NAME restores one")
            if others := trash.unknown(workspace):
                tell(f"of unknown origin, to be moved back by hand: {', '.join(others)}")
            return
        if not found:
            place = workspace.shown(workspace.trash)
            raise WorkspaceError(
                f"--item {self.item}: not found in {place}; Restore without --item lists what is there"
            )
        if len({entry.place for entry in found}) > 1:
            raise WorkspaceError(f"--item {self.item}: several items have this name: give the full path of one")
        if not self.confirm:
            tell(f"  would restore {found[0].place}, the newest; preview only: add --confirm to do it")
            return
        for place in trash.restore(workspace, found[0]):
            tell(f"  restored {place}")
        events.record(workspace, "restored", place=found[0].place, since=found[0].when)
        events.publish(workspace)


class Verify(PluginTask):
    """Re-hash every file of every data set, run and comparison in a workspace; exit code 4 when one is damaged."""

    without_scheduler = True

    done = False

    def complete(self) -> bool:
        return self.done

    def run(self) -> None:
        workspace = workspace_at(self.workspace)
        place = workspace.shown(workspace.root)
        found = verify(workspace)
        for line in found.damaged:
            tell(f"damaged: {line}")
        for line in found.unfinished:
            tell(f"unfinished: {line}")
        result = f"{len(found.damaged)} damaged" if found.damaged else "no damage"
        result += f"; {len(found.unfinished)} unfinished" if found.unfinished else ""
        tell(f"{found.files} files checked in {place}: {result}")
        if found.damaged:
            exit_with(DAMAGED)
            advice = "restore the files, or set the stage aside with SetAside"
            raise WorkspaceError(f"{place}: {len(found.damaged)} damaged: {advice}")
        self.done = True
