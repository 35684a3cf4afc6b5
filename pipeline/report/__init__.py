"""The report: what the earlier stages of a run measured, as a page for people.

Reads `train/`, `evaluate/` and `export/` of the run; leaves `index.html` (one file, nothing loaded from elsewhere),
`report.json` (the same facts for programs), `report.md` (a summary for mail and pull requests) and the manifest.
Never imports MXNet.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline.errors import from_os_error
from pipeline.files import human_size, write_atomically, write_json
from pipeline.process import child
from pipeline.report import examples, facts, page
from pipeline.workspace import MANIFEST, manifest
from pipeline.workspace.freshness import Chain

FILES = ("index.html", "report.json", "report.md")


def render(chain: Chain, reporter: child.Reporter, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Render the report of the chain's run and publish it; gives the manifest.

    `options["previous"]` may name an earlier run on the same data set to compare with,
    `{"run_id": "vgg11-…@2026-W47"}`; without it, that is the newest earlier generation.
    Raises `PipelineError` when an earlier stage is not done, `WorkspaceError` when one of its files is damaged.
    """
    started = time.monotonic()
    inputs = chain.inputs("report")
    sources = facts.read(chain)
    found = facts.gather(chain, sources, (options or {}).get("previous"))
    shown = {example["image"] for group in found["examples"].values() for example in group}
    images = {index: examples.data_uri(sources.data.test_images[index]) for index in sorted(shown)}
    folder = sources.run.stage("report")
    html = page.html(found, images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # From here until the new manifest is there the stage is not complete.
        (folder / MANIFEST).unlink(missing_ok=True)
        write_atomically(folder / "index.html", html)
        write_json(folder / "report.json", found)
        write_atomically(folder / "report.md", page.markdown(found))
        details = {"run": sources.run.run_id, "seconds": round(time.monotonic() - started, 3)}
        value = manifest.write(folder, "report", FILES, inputs, details)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "publish the report") from error
    size = human_size(value["files"]["index.html"]["size"])
    reporter.note(f"report ready in {details['seconds']:.1f} s: {folder / 'index.html'} ({size})")
    return value
