"""The chain: DownloadCifar -> TrainVGG -> Evaluate, Export -> Report."""

from __future__ import annotations

import html
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from luigi.util import requires

from pipeline.files import read_json
from pipeline.process import cores
from pipeline.retraining import generations
from pipeline.workspace.freshness import Chain, config_changes
from tasks import gpus
from tasks.base import log_results
from tasks.configurations import launcher_of
from tasks.log import log
from tasks.results import Result, result_of
from tasks.stage import StageTask
from tasks.workspaces import page_url


class DownloadCifar(StageTask):
    """Download and validate the images, and convert them to arrays that can be memory-mapped."""

    stage = "dataset"

    def process_resources(self) -> dict[str, int]:
        """Serialise tasks that share a data set: the first one makes it for all."""
        name = f"data set {self.chain.workspace.source_pointer(self.chain.config.data)}"
        return {html.escape(name, quote=False): 1}  # the dashboard inserts it as HTML


@requires(DownloadCifar)
class TrainVGG(StageTask):
    """Train the configured VGG. Resumes from checkpoints, and from the finished run if `epochs` was raised."""

    stage = "train"

    def process_resources(self) -> dict[str, int]:
        # A launcher moves the training to another machine, whose own scheduler allocates GPUs.
        config = self.chain.config
        return {} if launcher_of(config) else gpus.resources(config.device)

    def turn(self, chain: Chain, on_wait: Callable[[str], None]) -> AbstractContextManager[list[int]]:
        if launcher_of(chain.config) or gpus.uses_gpu(chain.config.device):
            return super().turn(chain, on_wait)
        return cores.take_turn(self.display_name, chain.config.distributed.workers, on_wait)

    def options(self, chain: Chain) -> dict[str, Any]:
        path, why = generations.warm_start(chain)
        if why:
            log.info("%s: %s", self.display_name, why)
        return {"init_from": str(path)} if path else {}

    def launcher(self, chain: Chain) -> list[str]:
        return launcher_of(chain.config)


@requires(TrainVGG)
class Evaluate(StageTask):
    """Evaluate the trained network on the test images."""

    stage = "evaluate"

    def process_resources(self) -> dict[str, int]:
        return gpus.resources(self.chain.config.device)


@requires(TrainVGG)
class Export(StageTask):
    """Export the trained network to ONNX and check it against MXNet."""

    stage = "export"


@requires(Evaluate, Export)
class Report(StageTask):
    """Write the report. Requires the whole chain."""

    stage = "report"

    def result(self) -> Result:
        """Accuracy and files of the finished chain. Raises `WorkspaceError` if it is not finished."""
        chain = self.chain
        return result_of(chain, chain.complete("report"))

    def headline(self) -> str:
        chain = self.chain
        folder = chain.folder("report")
        report = read_json(folder / "report.json") if folder else None
        if folder is None or not report:
            return "no report yet"
        page = self.page or chain.workspace.shown(folder / "index.html")
        try:
            dataset, accuracy = report["dataset"], report["evaluation"]["accuracy"]
            return f"test accuracy {accuracy:.2%} ({dataset.get('label', dataset['name'])}); report: {page}"
        except (KeyError, TypeError, ValueError, AttributeError):  # damaged, but of the recorded size
            return f"report.json is damaged (luigi --module tasks Verify); report: {page}"

    @property
    def page(self) -> str | None:
        chain = self.chain
        folder = chain.folder("report")
        return page_url(chain.workspace, folder / "index.html") if folder else None


log_results(Report)

#: Runs for which this command has logged a configuration change.
_warned: set[str] = set()


@StageTask.event_handler("event.core.dependency.present")
def _warn_config_changes(task: StageTask) -> None:
    """Warn, once per run, that a finished training was not done with the current settings."""
    chain = task.chain
    changed = config_changes(chain.manifest("train"), chain.config)
    if changed and (run := f"{chain.workspace.root}/{chain.run_id}") not in _warned:
        _warned.add(run)
        advice = "--generation NAME (beside this one), another architecture.name, or SetAside --stage train --confirm"
        line = "train %s: keeping the finished training although the configuration changed: %s; to retrain, use %s"
        if chain.why("train"):  # epochs were raised, or a file was lost
            line = "train %s: training with changed settings, which replaces its weights: %s; to keep both, use %s"
            advice = "--generation NAME"
        log.warning(line, chain.run_id, "; ".join(changed), advice)
