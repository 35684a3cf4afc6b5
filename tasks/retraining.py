"""Scheduled retraining: Retrain (a new generation when one is due), its promotion gate, Rollback, Prune.

Cron, a systemd timer or Luigi's RangeDaily calls `Retrain` as often as it likes; what is due follows from the
configuration's `schedule`, the date (UTC) and what the workspace holds.
"""

from __future__ import annotations

import datetime
from typing import Any, cast

import luigi

from pipeline import generations
from pipeline.errors import ConfigError
from pipeline.files import human_size
from pipeline.workspace import generation_seed
from tasks.base import ChainTask, StageTask, configuration_of
from tasks.defaults import BAD_CONFIGURATION, REFUSED, exit_with, log, scheduling
from tasks.maintenance import Command
from tasks.progress import tell
from tasks.stages import Evaluate, Export, Report


class Promote(StageTask):
    """The promotion gate: make the generation current unless it is worse than what is current."""

    stage = "promote"

    def requires(self) -> list[StageTask]:
        return [self.clone(Evaluate), self.clone(Export)]


class GenerationReport(Report):
    """The report of a generation, which also tells what the gate decided."""

    def requires(self) -> list[StageTask]:
        return [self.clone(Promote)]

    def complete(self) -> bool:
        return self.clone(Promote).complete() and super().complete()


class Retrain(ChainTask):
    """Make a new generation when one is due: train, evaluate, export, promote unless it is worse, report.

    `--generation` forces one by hand; otherwise its name follows from the date.
    """

    date = luigi.DateParameter(
        default=None,  # type: ignore[arg-type]
        description="the day (UTC) whose generation is wanted, for example 2026-11-25; default: today",
    )

    #: Whether this command has taken the generation on, and the report's manifest that was there then.
    _begun = False
    _report_before = cast("dict[str, Any] | None", None)  # an annotated attribute would be a parameter to mypy

    @classmethod
    def filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """With today's date and the name of its generation."""
        values = super().filled_in(values)
        if generation_seed(values["generation"]) is not None:
            raise ConfigError(
                f"--generation: found {values['generation']}, but seed-N names a repetition with another seed; choose "
                "another name"
            )
        values["date"] = values["date"] or generations.today()
        if not values["generation"]:
            config = configuration_of(values["config"], values["settings"])
            values["generation"] = generations.name(config.schedule.every, values["date"])
        return values

    @classmethod
    def bulk_complete(cls, dates: Any) -> list[datetime.date]:
        """For RangeDaily, which otherwise looks for the date in file names."""
        # `cls` may be a functools.partial with the other parameters in it.
        return [date for date in dates if cls(date=date).complete()]

    @property
    def priority(self) -> int:  # type: ignore[override]
        """When several dates are caught up with, the oldest goes first. Luigi hands it on to what is required."""
        return datetime.date.max.toordinal() - self.date.toordinal()

    def requires(self) -> GenerationReport:
        self._begin()
        return self.clone(GenerationReport)

    def complete(self) -> bool:
        with scheduling():
            return not generations.unfinished(self.chain)

    def output(self) -> luigi.LocalTarget:
        return self.clone(GenerationReport).output()

    def run(self) -> None:
        run = self.chain.run()
        decision = (generations.decision(run) if run else None) or {}
        log.info("generation %s %s: %s", self.generation, decision.get("outcome"), decision.get("reason"))
        # Only the command that finishes a generation fails for it, not one that finds it finished.
        if decision.get("outcome") == "refused" and self.chain.manifest("report") != self._report_before:
            exit_with(REFUSED)
        spare = generations.superfluous(self.chain, self.chain.config.schedule.keep)
        if spare:
            log.info("%d generations more than schedule.keep: `Prune` shows which, and moves them", len(spare))

    def _begin(self) -> None:
        """Say why the generation is due, the first time that Luigi asks what it requires."""
        if self._begun:
            return
        self._begun, self._report_before = True, self.chain.manifest("report")
        reasons = generations.why_due(self.chain)
        if reasons:
            log.info("generation %s is due: %s", self.generation, "; ".join(reasons))


@Retrain.event_handler("event.core.dependency.present")
def _tell_nothing_due(task: Retrain) -> None:
    every = task.chain.config.schedule.every
    run = task.chain.run()
    decision = (generations.decision(run) if run else None) or {}
    then = ""
    if task.generation == generations.name(every, task.date):
        then = f"; the next one is due on {generations.next_start(every, task.date)} (schedule.every: {every}, UTC)"
    done = f"generation {task.generation} is done ({decision.get('outcome')}) and data and architecture are the same"
    log.info("nothing is due: %s%s", done, then)


class Rollback(Command):
    """Make the model that was current before current again; with --to any finished generation."""

    to = luigi.Parameter(
        default="", description="the generation to make current, for example 2026-W47; default: the one before"
    )

    def work(self) -> None:
        old, new = generations.roll_back(self.chain, self.to)
        path = self.chain.workspace.current(self.chain.config)
        tell(f"current was {old.run} (accuracy {old.accuracy:.2%})")
        tell(f"current is  {new.run} (accuracy {new.accuracy:.2%}), see {self.chain.workspace.shown(path)}")
        tell(f"generation {old.generation} is not promoted again by itself; Rollback --to {old.generation} undoes this")


class Prune(Command):
    """Move all but the newest generations to the trash; never the current one. A preview unless --confirm."""

    keep = luigi.IntParameter(
        default=0, description="how many to keep, for example 5; default: schedule.keep of the configuration"
    )
    confirm = luigi.BoolParameter(default=False, description="really move the files; default: only a preview")

    def work(self) -> None:
        chain = self.chain
        keep = self.keep or chain.config.schedule.keep
        if keep < 1:
            exit_with(BAD_CONFIGURATION)
            raise ConfigError(f"--keep: found {keep}, expected at least 1")
        spare = generations.superfluous(chain, keep)
        total = 0
        for item in spare:
            size = self.chain.workspace.size_of(item.run.root)
            total += size
            accuracy = f"{item.accuracy:.2%}" if item.accuracy is not None else "-"
            told = f"{item.outcome}, accuracy {accuracy}, trained {item.trained}, {human_size(size)}"
            tell(f"{'moving' if self.confirm else 'would move'} generation {item.name} ({told})")
        tell(f"{len(spare)} generations, {human_size(total)}, besides the newest {keep} and the current one")
        if self.confirm:
            moved, left = generations.prune(chain, spare)
            tell("\n".join([*(f"  moved to {target}" for target in moved), *(f"  left: {why}" for why in left)]))
        elif spare:
            tell("nothing was done: add --confirm to do it")
