"""Scheduled retraining: Retrain (a new generation when one is due), its promotion gate, Rollback, Retire, Prune.

Cron, a systemd timer or Luigi's RangeDaily may run `Retrain` at any interval. Whether a generation is due depends on
the configuration's `retrain`, the date (UTC) and the workspace.
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
from pipeline.storage import LOCAL
from pipeline.text import counted
from pipeline.workspace import Run, Workspace, generation_seed, manifest
from pipeline.workspace.freshness import Chain, config_changes
from tasks.base import ChainTask
from tasks.configurations import loaded_config, settings_of
from tasks.exit_codes import REFUSED, request_exit_code
from tasks.log import echo, log
from tasks.maintenance import Command
from tasks.notification import notify
from tasks.results import Result, StoredFile, result_of
from tasks.stage import StageTask, checking, working
from tasks.stages import Evaluate, Export, Report
from tasks.workspaces import write_metrics


@requires(Evaluate, Export)
class Promote(StageTask):
    """The promotion gate: make the generation current unless it is worse than the current one."""

    stage = "promote"

    def notify_outcome(self, chain: Chain) -> None:
        run = chain.run()
        decision = generations.decision(run) if run else None
        if decision is None or chain.why(self.stage):
            return
        accuracy, reason, compared = (decision[key] for key in ("accuracy", "reason", "compared"))
        line = f"accuracy {accuracy:.2%} ({reason})" if reason == generations.FIRST_MODEL else reason
        fields = {"accuracy": accuracy, "reason": reason, "before": Path(compared["run"]).name if compared else None}
        fields = self.notification_fields | registry.event_fields(chain) | fields
        notify(decision["outcome"], f"{chain.run_id}: {line}", **fields)


@requires(Promote)
class GenerationReport(Report):
    """Write the report of a generation, which includes the gate's decision."""

    def complete(self) -> bool:
        return self.clone(Promote).complete() and super().complete()


class Retrain(ChainTask):
    """Make a new generation if one is due: train, evaluate, export, promote unless it is worse, report.

    `--generation` forces one by name; otherwise the name is that of the period of `--date`.
    """

    date = luigi.DateParameter(
        default=None,  # type: ignore[arg-type]
        description="day (UTC) to make the generation for, e.g. 2026-11-25; default: today",
    )

    #: Whether this command has logged why the generation is due, and the report's manifest at that time, by run.
    _announced = False
    _reports_before = cast("dict[str, dict[str, Any] | None]", {})  # an annotated attribute is a parameter to mypy

    @classmethod
    def resolve(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().resolve(values)
        if generation_seed(values["generation"]) is not None:
            raise ConfigError(
                f"--generation: found {values['generation']}, but seed-N is reserved for Compare; choose another name"
            )
        config, today = loaded_config(values["config"], values["settings"]), periods.today()
        values["date"] = values["date"] or today
        if by_date := not values["generation"]:
            values["generation"] = periods.name(config.retrain.every, values["date"])
            values["settings"] = settings_of(values["config"], values["settings"], values["generation"])
        period = periods.period(values["generation"])
        first = period[0] if period else values["date"]
        if (period or by_date) and first > (next_start := periods.next_start(config.retrain.every, today)):
            why = "once promoted, it would block all earlier generations; check --date and --generation"
            raise ConfigError(f"{values['generation']}: begins after the next period, {next_start}: {why}")
        return values

    @classmethod
    def bulk_complete(cls, dates: Any) -> list[datetime.date]:
        """Which of `dates` RangeDaily need not run. Its default implementation looks for dates in file names.

        A past period that had its generation is complete, even if the images have changed or its files are gone. So is
        one without a generation if the gate would refuse it now, or if all that are missing would get the same weights:
        then only the newest is made.
        """
        tasks = [cls(date=date) for date in dates]  # `cls` may be a functools.partial that binds the other parameters
        if not tasks:
            return []
        chain = tasks[0].chain
        decided, pointer = generations.decided(chain), registry.read(chain.workspace.current(chain.config))
        missing = []
        for task in tasks:
            period, run = periods.period(task.generation), task.chain.run()
            over = period is not None and period[1] < periods.today()
            begun = run is not None and run.root.exists() and not task.chain.why("dataset")
            unneeded = task.generation in decided or generations.superseded_by(task.generation, pointer)
            if not (over and not begun and unneeded) and not task.complete():
                missing.append(task)
        if missing and generations.from_scratch(chain.config) and not chain.config.retrain.new_seed:
            newest = max(missing, key=lambda task: task.date)
            missing = [task for task in missing if task.generation == newest.generation]
        return [task.date for task in tasks if task not in missing]

    def clone(self, cls: Any = None, **kwargs: Any) -> Any:
        """Like that of `ChainTask`; another `date` gives another period."""
        if "date" in kwargs and self.named_by_date:
            kwargs = {"generation": ""} | kwargs
        return super().clone(cls, **kwargs)

    @property
    def priority(self) -> int:  # type: ignore[override]
        """Oldest date first when catching up. Luigi passes the priority on to required tasks."""
        return datetime.date.max.toordinal() - self.date.toordinal()

    @property
    def report(self) -> GenerationReport:
        return self.clone(GenerationReport, generation=self.subject.generation, settings=self.settings)

    def requires(self) -> GenerationReport:
        self._log_why_due()
        return self.report

    def complete(self) -> bool:
        with checking():
            if not generations.unfinished(self.subject):
                return True
            self._check_baseline()
            return False

    def _check_baseline(self) -> None:
        """Raise `WorkspaceError` now, rather than after the training, if the gate cannot compare with its baseline."""
        workspace, run = self.chain.workspace, self.subject.run()
        path = workspace.current(self.chain.config)
        pointer = registry.read(path)
        undecided = run is None or (generations.decision(run) is None and pointer and pointer.run != run.place)
        if undecided and (problem := registry.baseline_problem(workspace, path)):
            raise WorkspaceError(f"no new generation can be compared with the current model: {problem}")

    def output(self) -> luigi.LocalTarget | StoredFile:
        return self.report.output()

    def result(self) -> Result:
        """Accuracy and files of the generation, promoted or not. Raises `WorkspaceError` unless it is finished."""
        subject = self.subject
        return result_of(subject, not generations.unfinished(subject))

    @property
    def page(self) -> str | None:
        return self.report.page

    def headline(self) -> str:
        return f"generation {self.generation}: {generations.verdict(self.decision)}"

    def run(self) -> None:
        with working():
            decision, run = self.decision, self.subject.run()
            # Only the command that finishes a generation reports its decision and exits with 5 if it is refused.
            finished = run is None or self.subject.manifest("report") != self._reports_before.get(run.place)
            log.info("%s", self.headline() if finished else f"generation {self.generation}: nothing has changed")
            refused = finished and decision.get("outcome") == generations.REFUSED
            workspace = self.chain.workspace
            _serve(self.chain)
            write_metrics(workspace, None if refused else self.chain.given)
            expired = retention.expired(self.chain, self.chain.config.retrain.keep)
            if expired:
                log.info("%s beyond retrain.keep: Prune moves them to the trash", counted(len(expired), "generation"))
        if refused:
            request_exit_code(REFUSED)

    @property
    def named_by_date(self) -> bool:
        return self.generation == periods.name(self.chain.config.retrain.every, self.date)

    @property
    def subject(self) -> Chain:
        """The chain of this generation's run: its own, or an existing one with the same weights."""
        return generations.subject(self.chain) if self.named_by_date else self.chain

    @property
    def decision(self) -> dict[str, Any]:
        run = self.subject.run()
        return (generations.decision(run) if run else None) or {}

    def _log_why_due(self) -> None:
        if self._announced:
            return
        subject = self.subject
        run = subject.run()  # None while the data set is not known
        runs = [run] if run else [item.run for item in generations.find(subject.workspace, subject.config)]
        self._announced = True
        self._reports_before = {run.place: manifest.read(run.stage("report")) for run in runs}
        reasons = generations.why_due(subject)
        if not reasons:
            return
        log.info("generation %s is due: %s", self.generation, "; ".join(reasons))
        if same := generations.same_weights(self.chain):
            action = "reusing it" if self.named_by_date else "training anyway, because --generation was given"
            log.info("generation %s: %s; %s", self.generation, _same_as(same), action)


def _serve(chain: Chain) -> None:
    """Publish the current model for services, in case an earlier command was killed before doing so."""
    pointer = chain.workspace.current(chain.config)
    with registry.held(chain.workspace, pointer):
        served.try_to_serve(chain.workspace, pointer)


def _same_as(run: Run) -> str:
    return f"same images, settings and seed, so the same weights as {run.generation or run.run_id}"


@Retrain.event_handler("event.core.dependency.present")
def _log_not_due(task: Retrain) -> None:
    with contextlib.suppress(PipelineError, OSError):  # e.g. a read-only workspace
        _serve(task.chain)
    write_metrics(task.chain.workspace, task.chain.given)
    every, subject, outcome = task.chain.config.retrain.every, task.subject, task.decision.get("outcome")
    run = subject.run()
    if run and run.place in registry.rolled_back(task.chain.workspace.current(task.chain.config)):
        outcome = generations.ROLLED_BACK
    next_due = f"; next is due {periods.next_start(every, task.date)}" if task.named_by_date else ""
    if run and subject.generation != task.generation:
        hint = "retrain.new_seed: true gives each generation its own seed; --generation NAME trains one anyway"
        log.info("up to date: %s: %s; %s", task.generation, f"{_same_as(run)} ({outcome}){next_due}", hint)
        return
    unless_promoted = "" if outcome == generations.PROMOTED else f" ({outcome})"
    log.info("up to date: %s exists%s%s", task.generation, unless_promoted, next_due)
    if changed := "; ".join(config_changes(subject.manifest("train"), subject.config)):
        log.warning("changed since: %s; takes effect with the next generation, or now with --generation NAME", changed)


class Rollback(Command, ChainTask):
    """Make the previous model current again, or with --to any finished generation."""

    instead_of_generation = "--to NAME"

    to = luigi.Parameter(
        default="",
        description="generation to make current, e.g. 2026-W47, or its folder (runs/…) if several share the name; "
        "default: the previous one",
    )

    def work(self) -> None:
        old, new = rollback.roll_back(self.chain, self.to)
        path = self.chain.workspace.current(self.chain.config)
        echo(f"before: {old.run} (accuracy {old.accuracy:.2%})" if old else "before: none")
        echo(f"now:    {new.run} (accuracy {new.accuracy:.2%}), see {self.chain.workspace.shown(path)}")
        run, before = Path(new.run).name, Path(old.run).name if old else None
        fields = {"run": run, "generation": new.generation, "accuracy": new.accuracy, "before": before}
        line = f"{run} is current (accuracy {new.accuracy:.2%}), replacing {before or 'none'}"
        notify("rolled back", line, **self.notification_fields | registry.event_fields(self.chain) | fields)
        write_metrics(self.chain.workspace)
        pointer = registry.read(path)
        if pointer and old and old.run in pointer.rolled_back:
            echo(f"{old.run} will not be promoted again automatically; Rollback --to {old.run} undoes this")


class Retire(Command, ChainTask):
    """List the current models, or retire one, for example after its architecture was renamed.

    Moves only the pointer to the trash. Only shows a preview unless --confirm is given.
    """

    instead_of_generation = "--name DATA/ARCHITECTURE"

    name = luigi.Parameter(default="", description="model to retire, e.g. cifar10/vgg11; default: only list them")
    confirm = luigi.BoolParameter(default=False, description="retire it; default: only show what would happen")

    def work(self) -> None:
        workspace = self.chain.workspace
        current = {registry.name_of(path): path for path in registry.pointers(workspace)}
        for name, path in current.items():
            echo(f"{name}: {workspace.shown(path)}")
        if self.name and self.confirm:
            target = rollback.retire(workspace, self.name)
            write_metrics(workspace)
            echo(f"retired {self.name}: the pointer moved to {workspace.shown(target)}")
            echo(f"  Restore --item current/{self.name}.json --confirm restores it")
        elif self.name in current:
            echo(f"would retire {self.name}; preview only: add --confirm to retire it")
        elif self.name:
            raise WorkspaceError(f"--name {self.name}: no model is current under this name")
        else:
            echo("nothing changed: --name NAME --confirm retires a model")


class _OptionalTimeDelta(OptionalParameterMixin[datetime.timedelta], luigi.TimeDeltaParameter):  # type: ignore[misc]
    expected_type = datetime.timedelta


class Prune(Command, ChainTask):
    """Move old generations and unneeded data sets to the trash. Only shows a preview unless --confirm is given.

    Always keeps the current generation and the previous one. With --older-than, also permanently deletes whatever has
    been in the trash, or left over in work/, for longer than that.
    """

    instead_of_generation = "none; --keep says how many stay"

    keep = luigi.OptionalIntParameter(
        description="number of promoted generations to keep, e.g. 5; default: retrain.keep of the configuration",
    )
    older_than = _OptionalTimeDelta(
        description="also permanently delete trash, and leftovers of trainings and downloads, older than this, "
        "e.g. 30d; at least 1d; default: delete nothing",
    )
    confirm = luigi.BoolParameter(
        default=False, description="move or delete the files; default: only show what would happen"
    )

    @classmethod
    def resolve(cls, values: dict[str, Any]) -> dict[str, Any]:
        keep, age = values["keep"], values["older_than"]
        if keep is not None and keep < 1:
            raise ConfigError(f"--keep: found {keep}, expected at least 1")
        if age is not None and not 1 <= age / datetime.timedelta(days=1) <= 36_500:
            raise ConfigError(f"--older-than: found {age}, expected 1d to 36500d, e.g. 30d")
        return super().resolve(values)

    def work(self) -> None:
        chain, workspace = self.chain, self.chain.workspace
        keep = chain.config.retrain.keep if self.keep is None else self.keep
        undeleted: OSError | None = None
        if self.older_than:  # first, to free the space that moving needs on a full disk
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
            details = f"accuracy {accuracy}, trained {item.trained}, {human_size(size)}"
            echo(f"{moving} generation {item.name} ({item.outcome or 'never decided'}, {details})")
        summary = f"{counted(len(expired), 'generation')}, {human_size(total)}" if expired else "nothing to prune"
        echo(f"{summary} (keeping the newest {keep}; the current and the previous one always stay)")
        for folder in unneeded:
            size = workspace.storage.folder_size(folder)
            echo(f"{moving} data set {folder.name} ({human_size(size)}), not needed by any run or source")
        if self.confirm:
            moved, left = retention.prune(chain, expired, unneeded)
            for line in [*(f"  moved to {target}" for target in moved), *(f"  left: {why}" for why in left)]:
                echo(line)
            if moved:
                echo("  Restore --item NAME --confirm restores one")
        elif expired or unneeded or self.older_than:
            echo("preview only: add --confirm to move or delete them")
        write_metrics(workspace)
        if undeleted:
            raise from_os_error(undeleted, "delete it") from undeleted

    def _delete(self, workspace: Workspace, age: datetime.timedelta) -> None:
        trashed, files = deletion.old_trash(workspace, age), deletion.leftovers(workspace, age)
        size = sum(map(workspace.storage.folder_size, trashed)) + sum(map(_size, files))
        what = f"{counted(len(trashed), 'trash folder')} and {counted(len(files), 'leftover')} ({human_size(size)})"
        echo(f"{'permanently deleting' if self.confirm else 'would permanently delete'} {what}")
        for path in files:
            if path.is_dir():
                echo(f"  {workspace.shown(path)}, which has no result")
        if self.confirm and (trashed or files):
            deletion.delete(workspace, trashed, files)


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # another Prune may have just deleted it
        return LOCAL.folder_size(path) if path.is_dir() and not path.is_symlink() else path.lstat().st_size
    return 0
