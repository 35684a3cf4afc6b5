"""Workspace maintenance: Status (what would run, and why), SetAside and Restore (the trash), Verify (checksums)."""

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
from tasks.exit_codes import DAMAGED, NOT_DONE, request_exit_code
from tasks.log import echo
from tasks.stage import working
from tasks.workspaces import workspace_at, write_metrics


class Command(PluginTask):
    """Base of tasks that act every time they are run, need no luigid and have no output."""

    without_scheduler = True
    done = False
    #: Heartbeat threads of the worker that ran it. Luigi caches task objects, so the next `luigi.build` in the same
    #: program gets this one again: it is done only while that worker is alive.
    _heartbeats = frozenset[threading.Thread]()

    def complete(self) -> bool:
        return self.done and (not self._heartbeats or any(thread.is_alive() for thread in self._heartbeats))

    def run(self) -> None:
        with working():
            self.work()
        self._heartbeats = frozenset(t for t in threading.enumerate() if isinstance(t, KeepAliveThread))
        self.done = True

    def work(self) -> None:
        raise NotImplementedError


class Status(Command, ChainTask):
    """Show which stages are done, which would run, and why. Exits with 3 if something would run."""

    json = luigi.BoolParameter(default=False, description="print JSON; default: text")
    sizes = luigi.BoolParameter(default=False, description="also print the number and size of files; default: no")

    def work(self) -> None:
        facts = status.gather(self.chain)
        if self.sizes:
            facts["sizes"] = status.sizes(self.chain.workspace)
        echo(json.dumps(facts, indent=2) if self.json else "\n".join(status.lines(facts, self.config)))
        write_metrics(self.chain.workspace)
        if not facts["done"]:
            request_exit_code(NOT_DONE)


class SetAside(Command, ChainTask):
    """Move a finished stage to the trash so that it runs again. Only shows a preview unless --confirm is given."""

    stage = luigi.ChoiceParameter(choices=list(STAGES), description="stage to set aside, e.g. train; no default")
    confirm = luigi.BoolParameter(default=False, description="move the files; default: only show what would move")

    def work(self) -> None:
        chain, shown = self.chain, self.chain.workspace.shown
        folder = trash.existing(chain, self.stage)
        target = chain.workspace.in_trash(folder)
        after = [stage for stage in STAGES if self.stage in all_upstream(stage)]
        moving = "moving" if self.confirm else "would move"
        size = human_size(chain.workspace.storage.folder_size(folder))
        echo(f"{moving} {shown(folder)} ({size})\n  to {shown(target)}")
        echo(f"  the next run repeats {self.stage}" + (f", then {', '.join(after)} where needed" if after else ""))
        if not self.confirm:
            echo("  preview only: add --confirm to move it")
            return
        trash.set_aside(chain, self.stage, target)
        place = folder if self.stage == "dataset" else folder.parent
        echo(f"  Restore --item {place.relative_to(chain.workspace.root)} --confirm restores it")


class Restore(Command, ChainTask):
    """List the trash, or restore one item from it. Only shows a preview unless --confirm is given."""

    instead_of_generation = "--item NAME"

    item = luigi.Parameter(
        default="",
        description="what to restore: a generation, run or data set, e.g. 2026-W47; default: only list the trash",
    )
    confirm = luigi.BoolParameter(default=False, description="move the files; default: only show what would move")

    def work(self) -> None:
        workspace = self.chain.workspace
        matches = [entry for entry in trash.items(workspace) if not self.item or entry.is_named(self.item)]
        for entry in matches:
            echo(f"{entry.place} ({', '.join(trash.contents(workspace, entry))}; since {entry.when})")
        if not self.item:
            echo(f"{counted(len(matches), 'item')} in {workspace.shown(workspace.trash)}; --item NAME restores one")
            if others := trash.unknown(workspace):
                echo(f"not restorable automatically (move back by hand): {', '.join(others)}")
            return
        if not matches:
            place = workspace.shown(workspace.trash)
            raise WorkspaceError(f"--item {self.item}: not found in {place}; Restore without --item lists the trash")
        if len({entry.place for entry in matches}) > 1:
            raise WorkspaceError(f"--item {self.item}: several items have this name: give the full path of one")
        if not self.confirm:
            echo(f"  would restore {matches[0].place}, the newest; preview only: add --confirm to restore it")
            return
        for place in trash.restore(workspace, matches[0]):
            echo(f"  restored {place}")
        events.record(workspace, "restored", place=matches[0].place, since=matches[0].when)
        events.publish(workspace)


class Verify(Command):
    """Recompute the checksums of all data sets, runs and comparisons of a workspace. Exits with 4 on damage."""

    def work(self) -> None:
        workspace = workspace_at(self.workspace)
        place = workspace.shown(workspace.root)
        result = verify(workspace)
        for line in result.damaged:
            echo(f"damaged: {line}")
        for line in result.unfinished:
            echo(f"unfinished: {line}")
        summary = f"{len(result.damaged)} damaged" if result.damaged else "no damage"
        summary += f"; {len(result.unfinished)} unfinished" if result.unfinished else ""
        echo(f"{counted(result.files, 'file')} checked in {place}: {summary}")
        if result.damaged:
            request_exit_code(DAMAGED)
            advice = "restore the files or have them made again: SetAside for a stage; delete a comparison or `promote`"
            raise WorkspaceError(f"{place}: {len(result.damaged)} damaged: {advice}")
