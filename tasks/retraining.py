"""Scheduled retraining: Retrain (a new generation when one is due), its promotion gate, Rollback, Prune.

Cron, a systemd timer or Luigi's RangeDaily calls `Retrain` as often as it likes; what is due follows from the
configuration's `retrain`, the date (UTC) and what the workspace holds.
"""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import Any, cast

import luigi
from luigi.parameter import OptionalParameterMixin
from luigi.util import requires

from pipeline.errors import ConfigError, PipelineError, WorkspaceError, from_os_error
from pipeline.files import human_size
from pipeline.retraining import deletion, generations, periods, registry, retention, rollback, served
from pipeline.text import counted
from pipeline.workspace import Run, Workspace, generation_seed, with_generation_seed
from pipeline.workspace.freshness import Chain, config_changes
from tasks.base import ChainTask
from tasks.configurations import configuration_of, remember
from tasks.exit_codes import REFUSED, exit_with
from tasks.log import log, tell
from tasks.maintenance import Command
from tasks.notification import notify
from tasks.results import Result, StoredFile, result_of
from tasks.stage import StageTask, checking, working
from tasks.stages import Evaluate, Export, Report
from tasks.workspaces import write_metrics


@requires(Evaluate, Export)
class Promote(StageTask):
    """The promotion gate: make the generation current unless it is worse than what is current."""

    stage = "promote"

    def announce(self, chain: Chain) -> None:
        run = chain.run()
        decision = generations.decision(run) if run else None
        if decision is None or chain.why(self.stage):
            return
        accuracy, why, compared = (decision[key] for key in ("accuracy", "reason", "compared"))
        line = f"accuracy {accuracy:.2%} ({why})" if why == generations.FIRST_MODEL else why
        told = {"accuracy": accuracy, "reason": why, "before": Path(compared["run"]).name if compared else None}
        notify(decision["outcome"], f"{chain.run_id}: {line}", **self.about, **registry.event_fields(chain), **told)


@requires(Promote)
class GenerationReport(Report):
    """The report of a generation, which also tells what the gate decided."""

    def complete(self) -> bool:
        return self.clone(Promote).complete() and super().complete()


class Retrain(ChainTask):
    """Make a new generation when one is due: train, evaluate, export, promote unless it is worse, report.

    `--generation` forces one by hand; otherwise its name follows from the date.
    """

    date = luigi.DateParameter(
        default=None,  # type: ignore[arg-type]
        description="the day (UTC) whose generation is wanted, e.g. 2026-11-25; default: today",
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
                f"--generation: found {values['generation']}, but seed-N is reserved for Compare; choose another name"
            )
        config, today = configuration_of(values["config"], values["settings"]), periods.today()
        values["date"] = values["date"] or today
        if not values["generation"]:
            values["generation"] = periods.name(config.retrain.every, values["date"])
            values["settings"] = remember(values["config"], with_generation_seed(config, values["generation"]))
        first, _ = periods.period(values["generation"]) or (values["date"], None)
        if first > (following := periods.next_start(config.retrain.every, today)):
            why = "the gate would promote none of the generations before it; check --date and --generation"
            raise ConfigError(f"{values['generation']}: begins after the next period, {following}: {why}")
        return values

    @classmethod
    def bulk_complete(cls, dates: Any) -> list[datetime.date]:
        """For RangeDaily, which otherwise looks for the date in file names.

        A period that is over and had its generation was not missed, whatever became of the images or of its files.
        """
        done, decided = [], None
        for date in dates:
            task = cls(date=date)  # `cls` may be a functools.partial with the other parameters in it
            decided = generations.decided(task.chain) if decided is None else decided
            period, run = periods.period(task.generation), task.chain.run()
            over = period is not None and period[1] < periods.today()
            begun = run is not None and run.root.exists()
            if (over and task.generation in decided and not begun) or task.complete():
                done.append(date)
        return done

    @property
    def priority(self) -> int:  # type: ignore[override]
        """When several dates are caught up with, the oldest goes first. Luigi hands it on to what is required."""
        return datetime.date.max.toordinal() - self.date.toordinal()

    @property
    def report(self) -> GenerationReport:
        """The generation's last stage."""
        return self.clone(GenerationReport, generation=self.subject.generation)

    def requires(self) -> GenerationReport:
        self._begin()
        return self.report

    def complete(self) -> bool:
        with checking():
            if not generations.unfinished(self.subject):
                return True
            # The gate cannot decide without it, and is asked after the training.
            registry.read(self.chain.workspace.current(self.chain.config))
            return False

    def output(self) -> luigi.LocalTarget | StoredFile:
        return self.report.output()

    def result(self) -> Result:
        """The accuracy and the files of the generation, promoted or not; raises `WorkspaceError` before it is there."""
        subject = self.subject
        return result_of(subject, not generations.unfinished(subject))

    @property
    def page(self) -> str | None:
        return self.report.page

    def headline(self) -> str:
        """What the gate decided about the generation."""
        return f"generation {self.generation}: {generations.verdict(self.decision)}"

    def run(self) -> None:
        with working():
            decision = self.decision
            # Only the command that finishes a generation tells of it and fails for it, not one that finds it finished.
            finished = self.subject.manifest("report") != self._report_before
            log.info("%s", self.headline() if finished else f"generation {self.generation}: nothing has changed")
            refused = finished and decision.get("outcome") == generations.REFUSED
            workspace = self.chain.workspace
            _serve(self.chain)
            write_metrics(workspace, None if refused else self.chain.given)
            expired = retention.expired(self.chain, self.chain.config.retrain.keep)
            if expired:
                log.info("more generations than retrain.keep: %d can go to the trash, see Prune", len(expired))
        if refused:
            exit_with(REFUSED)

    @property
    def by_date(self) -> bool:
        """Whether the generation's name is that of its period, rather than one that was asked for by hand."""
        return self.generation == periods.name(self.chain.config.retrain.every, self.date)

    @property
    def subject(self) -> Chain:
        """The chain of the run that this generation is: its own, or one whose weights its training would repeat."""
        return generations.subject(self.chain) if self.by_date else self.chain

    @property
    def decision(self) -> dict[str, Any]:
        """What the gate decided about it; empty when it has not."""
        run = self.subject.run()
        return (generations.decision(run) if run else None) or {}

    def _begin(self) -> None:
        """Say why the generation is due, the first time that Luigi asks what it requires."""
        if self._begun:
            return
        subject = self.subject
        self._begun, self._report_before = True, subject.manifest("report")
        reasons = generations.why_due(subject)
        if not reasons:
            return
        log.info("generation %s is due: %s", self.generation, "; ".join(reasons))
        if same := generations.same_weights(self.chain):
            what = "reusing it" if self.by_date else "training anyway, as it was named by hand"
            log.info("generation %s: %s; %s", self.generation, _same_as(same), what)


def _serve(chain: Chain) -> None:
    """Let services find the current model, should a command have been killed before it did so."""
    pointer = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, pointer):
        served.try_to_serve(chain.workspace, pointer)


def _same_as(run: Run) -> str:
    return f"same images, settings and seed, so the same weights as {run.generation or run.run_id}"


@Retrain.event_handler("event.core.dependency.present")
def _tell_nothing_due(task: Retrain) -> None:
    with contextlib.suppress(PipelineError, OSError):  # a workspace that is only read, say
        _serve(task.chain)
    write_metrics(task.chain.workspace, task.chain.given)
    every, subject, outcome = task.chain.config.retrain.every, task.subject, task.decision.get("outcome")
    then = f"; next is due {periods.next_start(every, task.date)}" if task.by_date else ""
    run = subject.run()
    if run and subject.generation != task.generation:
        ways = "retrain.new_seed: true gives each generation a seed of its own, --generation NAME trains one anyway"
        log.info("up to date: %s: %s; %s", task.generation, f"{_same_as(run)} ({outcome}){then}", ways)
        return
    refused = " (refused)" if outcome == generations.REFUSED else ""
    log.info("up to date: %s exists%s%s", task.generation, refused, then)
    if changed := "; ".join(config_changes(subject.manifest("train"), subject.config)):
        log.warning("changed since: %s; applies to the next generation, or to --generation NAME now", changed)


class Rollback(Command, ChainTask):
    """Make the model that was current before current again; with --to any finished generation."""

    instead = "--to NAME"

    to = luigi.Parameter(
        default="",
        description="the generation to make current, e.g. 2026-W47, or where several have that name its folder "
        "(runs/…); default: the one before",
    )

    def work(self) -> None:
        old, new = rollback.roll_back(self.chain, self.to)
        path = self.chain.workspace.current(self.chain.config)
        tell(f"current was {old.run} (accuracy {old.accuracy:.2%})")
        tell(f"current is  {new.run} (accuracy {new.accuracy:.2%}), see {self.chain.workspace.shown(path)}")
        run, before = Path(new.run).name, Path(old.run).name
        told = {"run": run, "generation": new.generation, "accuracy": new.accuracy, "before": before}
        line = f"{run} is current again (accuracy {new.accuracy:.2%}), in place of {before}"
        notify("rolled back", line, **self.about | registry.event_fields(self.chain) | told)
        write_metrics(self.chain.workspace)
        pointer = registry.read(path)
        if pointer and old.run in pointer.rolled_back:
            tell(f"{old.run} will not be promoted again automatically; Rollback --to {old.run} undoes this")


class Retire(Command, ChainTask):
    """Show the current models, or let one be current no longer, as after a change of its architecture's name.

    Only the pointer goes to the trash. A preview unless --confirm.
    """

    instead = "--name DATA/ARCHITECTURE"

    name = luigi.Parameter(
        default="", description="the model to retire, e.g. cifar10/vgg11; default: none, only list them"
    )
    confirm = luigi.BoolParameter(default=False, description="do it; default: preview")

    def work(self) -> None:
        workspace = self.chain.workspace
        current = {registry.name_of(path): path for path in registry.pointers(workspace)}
        for name, path in current.items():
            tell(f"{name}: {workspace.shown(path)}")
        if self.name and self.confirm:
            target = rollback.retire(workspace, self.name)
            write_metrics(workspace)
            tell(f"retired {self.name}: the pointer moved to {workspace.shown(target)}")
            tell(f"  Restore --item current/{self.name}.json --confirm restores it")
        elif self.name in current:
            tell(f"would retire {self.name}; preview only: add --confirm to do it")
        elif self.name:
            raise WorkspaceError(f"--name {self.name}: no model is current under this name")
        else:
            tell("nothing changed: --name NAME --confirm retires a model")


class _OptionalTimeDelta(OptionalParameterMixin[datetime.timedelta], luigi.TimeDeltaParameter):  # type: ignore[misc]
    expected_type = datetime.timedelta


class Prune(Command, ChainTask):
    """Move old generations, and data sets that none of the others needs, to the trash. A preview unless --confirm.

    The current generation and the one before it always stay. With --older-than also permanently delete what was moved
    to the trash, or left in work/, before that.
    """

    instead = "none; --keep says how many stay"

    keep = luigi.OptionalIntParameter(
        description="how many promoted generations to keep, e.g. 5; default: retrain.keep of the configuration",
    )
    older_than = _OptionalTimeDelta(
        description="also permanently delete what has been in the trash, or left by trainings and downloads, for "
        "longer than this, e.g. 30d; at least 1d; default: nothing is deleted",
    )
    confirm = luigi.BoolParameter(default=False, description="move or delete the files; default: preview")

    @classmethod
    def filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuses what would keep nothing, and an age that is none."""
        keep, age = values["keep"], values["older_than"]
        if keep is not None and keep < 1:
            raise ConfigError(f"--keep: found {keep}, expected at least 1")
        if age is not None and not 1 <= age / datetime.timedelta(days=1) <= 36_500:
            raise ConfigError(f"--older-than: found {age}, expected 1d to 36500d, e.g. 30d")
        return super().filled_in(values)

    def work(self) -> None:
        chain, workspace = self.chain, self.chain.workspace
        keep = chain.config.retrain.keep if self.keep is None else self.keep
        undeleted: OSError | None = None
        if self.older_than:  # first: on a full disk it makes the room that moving takes
            try:
                self._delete(workspace, self.older_than)
            except OSError as error:
                undeleted = error
        expired = retention.expired(chain, keep)
        unneeded = retention.unneeded_datasets(workspace, expired)
        moving = "moving" if self.confirm else "would move"
        total = 0
        for item in expired:
            size = workspace.storage.folder_size(item.run.root)
            total += size
            accuracy = f"{item.accuracy:.2%}" if item.accuracy is not None else "-"
            told = f"{item.outcome}, accuracy {accuracy}, trained {item.trained}, {human_size(size)}"
            tell(f"{moving} generation {item.name} ({told})")
        found = f"{counted(len(expired), 'generation')}, {human_size(total)}" if expired else "nothing to prune"
        tell(f"{found} (keeping the newest {keep}; the current and the previous one always stay)")
        for folder in unneeded:
            size = workspace.storage.folder_size(folder)
            tell(f"{moving} data set {folder.name} ({human_size(size)}), which no run and no source needs")
        if self.confirm:
            moved, left = retention.prune(chain, expired, unneeded)
            tell("\n".join([*(f"  moved to {target}" for target in moved), *(f"  left: {why}" for why in left)]))
            if moved:
                tell("  Restore --item NAME --confirm restores one")
        if not self.confirm and (expired or unneeded or self.older_than):
            tell("preview only: add --confirm to do it")
        write_metrics(workspace)
        if undeleted:
            raise from_os_error(undeleted, "delete it") from undeleted

    def _delete(self, workspace: Workspace, age: datetime.timedelta) -> None:
        trashed, files = deletion.old_trash(workspace, age), deletion.leftovers(workspace, age)
        size = sum(map(workspace.storage.folder_size, trashed)) + sum(map(_size, files))
        what = f"{counted(len(trashed), 'trash folder')} and {counted(len(files), 'leftover')} ({human_size(size)})"
        tell(f"{'permanently deleting' if self.confirm else 'would permanently delete'} {what}")
        if self.confirm and (trashed or files):
            deletion.delete(workspace, trashed, files)


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # another Prune was faster
        return path.lstat().st_size
    return 0
