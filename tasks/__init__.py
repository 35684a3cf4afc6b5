"""The Luigi tasks of the plugin: `luigi --module tasks Report`, or `luigi.build([tasks.Report(…)])` in a program."""

import tasks.neighbours  # noqa: F401 (first: does another `pipeline` shadow ours?)
from tasks import command
from tasks.compare import Compare
from tasks.doctor import Doctor
from tasks.maintenance import Restore, SetAside, Status, Verify
from tasks.retraining import GenerationReport, Promote, Prune, Retire, Retrain, Rollback
from tasks.stages import DownloadCifar, Evaluate, Export, Report, TrainVGG

__all__ = [
    "Compare",
    "Doctor",
    "DownloadCifar",
    "Evaluate",
    "Export",
    "GenerationReport",
    "Promote",
    "Prune",
    "Report",
    "Restore",
    "Retire",
    "Retrain",
    "Rollback",
    "SetAside",
    "Status",
    "TrainVGG",
    "Verify",
]

command.on_import()
