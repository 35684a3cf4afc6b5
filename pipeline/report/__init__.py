"""The report: the results of a run on one page.

Reads `train/`, `evaluate/` and `export/` of the run; leaves `index.html` (one file, nothing loaded from elsewhere),
`report.json` (the same facts for programs), `report.md` (a summary for mail and pull requests) and the manifest.
Never imports MXNet.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline import pages
from pipeline.process import child
from pipeline.report import facts, page
from pipeline.workspace.freshness import Chain


def render(chain: Chain, reporter: child.Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Render the report of the chain's run and publish it; returns the manifest.

    Raises `PipelineError` when an earlier stage is not done, `WorkspaceError` when one of its files is damaged.
    """
    started = time.monotonic()
    inputs = chain.inputs("report")
    sources = facts.read(chain)
    found = facts.gather(chain, sources)
    contents: dict[str, Any] = {
        "index.html": page.html(found, sources.data.test_images),
        "report.json": found,
        "report.md": page.markdown(found),
    }
    folder, details = sources.run.stage("report"), {"run": sources.run.run_id}
    return pages.publish(folder, "report", contents, inputs, details, started=started, reporter=reporter)
