"""Looking after a workspace: Status (what would run, and why), SetAside and Restore (the trash), Verify (checksums)."""

from __future__ import annotations

import json
import threading

import luigi
from luigi.worker import KeepAliveThread

from pipeline import status
from pipeline.errors import WorkspaceError
from pipeline.files import human_size
from pipeline.retraining import trash
from pipeline.text import counted
from pipeline.verify import verify
from pipeline.workspace import events
from pipeline.workspace.freshness import STAGES, all_upstream
from tasks.base import ChainTask, PluginTask
from tasks.exit_codes import DAMAGED, NOT_DONE, exit_with
from tasks.log import tell
from tasks.stage import working
from tasks.workspaces import workspace_at, write_metrics


class Command(PluginTask):
    """A task that acts each time it is run, without a scheduler, and has no output."""

    without_scheduler = True
    done = False
    #: The heartbeats of the worker that ran it. Luigi gives the next `luigi.build` the same object.
    _worker = frozenset[threading.Thread]()

    def complete(self) -> bool:
        return self.done and (not self._worker or any(thread.is_alive() for thread in self._worker))

    def run(self) -> None:
        with working():
            self.work()
        self._worker = frozenset(one for one in threading.enumerate() if isinstance(one, KeepAliveThread))
        self.done = True

    def work(self) -> None:
        raise NotImplementedError


class Status(Command, ChainTask):
    """Print, for each stage, whether it is done or would run, and why; exit code 3 when something would run."""

    json = luigi.BoolParameter(default=False, description="print the same as JSON; default: as text")
    sizes = luigi.BoolParameter(
        default=False, description="also print how many files and bytes there are of each kind; default: not"
    )

    def work(self) -> None:
        facts = status.gather(self.chain)
        if self.sizes:
            facts["sizes"] = status.sizes(self.chain.workspace)
        tell(json.dumps(facts, indent=2) if self.json else "\n".join(status.lines(facts, self.config)))
        write_metrics(self.chain.workspace)
        if not facts["done"]:
            exit_with(NOT_DONE)


class SetAside(Command, ChainTask):
    """Move a finished stage to the workspace's trash, so that it runs again. A preview unless --confirm."""

    stage = luigi.ChoiceParameter(
        choices=list(STAGES), description="the stage to set aside, e.g. train; has no default."
    )
    confirm = luigi.BoolParameter(default=False, description="move the files; default: preview")

    def work(self) -> None:
        chain, shown = self.chain, self.chain.workspace.shown
        folder = trash.finished(chain, self.stage)
        target = chain.workspace.in_trash(folder)
        after = [stage for stage in STAGES if self.stage in all_upstream(stage)]
        moving = "moving" if self.confirm else "would move"
        size = human_size(chain.workspace.storage.folder_size(folder))
        tell(f"{moving} {shown(folder)} ({size})\n  to {shown(target)}")
        tell(f"  the next run repeats {self.stage}" + (f", then {', '.join(after)} where needed" if after else ""))
        if not self.confirm:
            tell("  preview only: add --confirm to do it")
            return
        trash.set_aside(chain, self.stage, target)
        tell(f"  Restore --item {folder.name if self.stage == 'dataset' else chain.run_id} --confirm restores it")


class Restore(Command, ChainTask):
    """Show what is in the trash, or bring one thing back from there. A preview unless --confirm."""

    instead = "--item NAME"

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
            tell(f"{counted(len(found), 'item')} in {workspace.shown(workspace.trash)}; --item NAME restores one")
            if others := trash.unknown(workspace):
                tell(f"not restorable automatically (move back by hand): {', '.join(others)}")
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


class Verify(Command):
    """Recompute the checksums of every data set, run and comparison in a workspace; exit code 4 for a damaged file."""

    def work(self) -> None:
        workspace = workspace_at(self.workspace)
        place = workspace.shown(workspace.root)
        found = verify(workspace)
        for line in found.damaged:
            tell(f"damaged: {line}")
        for line in found.unfinished:
            tell(f"unfinished: {line}")
        result = f"{len(found.damaged)} damaged" if found.damaged else "no damage"
        result += f"; {len(found.unfinished)} unfinished" if found.unfinished else ""
        tell(f"{counted(found.files, 'file')} checked in {place}: {result}")
        if found.damaged:
            exit_with(DAMAGED)
            advice = "restore the files, or set the stage aside with SetAside"
            raise WorkspaceError(f"{place}: {len(found.damaged)} damaged: {advice}")
