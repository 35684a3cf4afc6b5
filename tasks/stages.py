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
from tasks.base import tell_results
from tasks.configurations import launcher_of
from tasks.log import log
from tasks.results import Result, result_of
from tasks.stage import StageTask
from tasks.workspaces import page_url


class DownloadCifar(StageTask):
    """Get the images, check them, and make arrays that can be memory-mapped."""

    stage = "dataset"

    def process_resources(self) -> dict[str, int]:
        """Tasks of several configurations that share a data set take turns; the first one makes it for all."""
        name = f"data set {self.chain.workspace.source_pointer(self.chain.config.data)}"
        return {html.escape(name, quote=False): 1}  # the dashboard inserts it as HTML


@requires(DownloadCifar)
class TrainVGG(StageTask):
    """Train the configured VGG; goes on from checkpoints and, when `epochs` were raised, from the finished run."""

    stage = "train"

    def process_resources(self) -> dict[str, int]:
        # A launcher takes the training to another machine, where a scheduler of its own gives out the cards.
        config = self.chain.config
        return {} if launcher_of(config) else gpus.resources(config.device)

    def turn(self, chain: Chain, waiting: Callable[[str], None]) -> AbstractContextManager[list[int]]:
        if launcher_of(chain.config) or gpus.computes_on_a_card(chain.config.device):
            return super().turn(chain, waiting)
        return cores.take_turn(self.what, chain.config.distributed.workers, waiting)

    def options(self, chain: Chain) -> dict[str, Any]:
        path, why = generations.warm_start(chain)
        if why:
            log.info("%s: %s", self.what, why)
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
    """Export the trained network as ONNX, checked against MXNet."""

    stage = "export"


@requires(Evaluate, Export)
class Report(StageTask):
    """Write the report. The whole chain hangs on this task."""

    stage = "report"

    def result(self) -> Result:
        """The finished chain's accuracy and files; raises `WorkspaceError` when it is not finished."""
        chain = self.chain
        return result_of(chain, chain.complete("report"))

    def headline(self) -> str:
        """Accuracy and where to read more, from the finished report."""
        chain = self.chain
        folder = chain.folder("report")
        report = read_json(folder / "report.json") if folder else None
        if folder is None or not report:
            return "no report yet"
        page = self.page or chain.workspace.shown(folder / "index.html")
        try:
            dataset, accuracy = report["dataset"], report["evaluation"]["accuracy"]
            return f"test accuracy {accuracy:.2%} ({dataset.get('label', dataset['name'])}); report: {page}"
        except (KeyError, TypeError, ValueError, AttributeError):  # of the right size, so nobody looked into it
            return f"report.json is damaged (luigi --module tasks Verify); report: {page}"

    @property
    def page(self) -> str | None:
        chain = self.chain
        folder = chain.folder("report")
        return page_url(chain.workspace, folder / "index.html") if folder else None


tell_results(Report)

#: The runs whose changed configuration this command has told of.
_told: set[str] = set()


@StageTask.event_handler("event.core.dependency.present")
def _tell_config_changes(task: StageTask) -> None:
    """A finished training stays as it is: say, once, what the configuration asks for that it does not have."""
    chain = task.chain
    changed = config_changes(chain.manifest("train"), chain.config)
    if changed and (place := f"{chain.workspace.root}/{chain.run_id}") not in _told:
        _told.add(place)
        ways = "--generation NAME (beside this one), another architecture.name, or SetAside --stage train --confirm"
        log.warning("train %s: not retrained for this: %s; to retrain: %s", chain.run_id, "; ".join(changed), ways)
