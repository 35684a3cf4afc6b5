"""The Luigi tasks of the plugin: `luigi --module tasks Report`."""

from tasks import defaults, luigid  # first: they set what Luigi reads next
from tasks.comparing import Compare
from tasks.doctor import Doctor
from tasks.maintenance import SetAside, Status, Verify
from tasks.retraining import GenerationReport, Promote, Prune, Retrain, Rollback
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
    "Retrain",
    "Rollback",
    "SetAside",
    "Status",
    "TrainVGG",
    "Verify",
    "defaults",
    "luigid",
]
