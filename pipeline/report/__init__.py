"""The report: the results of a run on one page.

Reads `train/`, `evaluate/` and `export/` of the run. Writes `index.html` (self-contained), `report.json` (the same
facts, for programs), `report.md` (a summary for mail and pull requests) and the manifest. Never imports MXNet.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline import pages
from pipeline.process.reporter import Reporter
from pipeline.report import facts, page
from pipeline.workspace.freshness import Chain


def render(chain: Chain, reporter: Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Render and publish the report of the chain's run. Returns the manifest.

    Raises `PipelineError` if an earlier stage is not done, `WorkspaceError` if one of its files is damaged.
    """
    started = time.monotonic()
    inputs = chain.inputs("report")
    sources = facts.read(chain)
    values = facts.gather(chain, sources)
    contents: dict[str, Any] = {
        "index.html": page.html(values, sources.data.test_images),
        "report.json": values,
        "report.md": page.markdown(values),
    }
    folder, details = sources.run.stage("report"), {"run": sources.run.run_id}
    return pages.publish(folder, "report", contents, inputs, details, started=started, reporter=reporter)
