"""Shared parts of the report and comparison pages, which are self-contained files with every value escaped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline import __version__
from pipeline.errors import from_os_error
from pipeline.files import human_size, write_atomically, write_json
from pipeline.pages import formats
from pipeline.process.reporter import Reporter
from pipeline.workspace import MANIFEST, manifest

#: Test accuracy of the published network that this pipeline reproduces, on the 10,000 test images of CIFAR-10.
PUBLISHED_ACCURACY = 0.7405

_TEMPLATES = Path(__file__).parent / "templates"


def html(template: Path, facts: Mapping[str, Any], **values: Any) -> str:
    """Render a page from facts. The template extends `page.html.j2`."""
    style = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return _template(template, autoescape=True).render(**facts, **values, style=style, version=__version__)


def markdown(template: Path, facts: Mapping[str, Any], **values: Any) -> str:
    """Render Markdown from facts."""
    return _template(template, autoescape=False, finalize=formats.markdown).render(**facts, **values)


def publish(
    folder: Path,
    stage: str,
    contents: Mapping[str, str | dict[str, Any]],
    inputs: Mapping[str, str | None],
    details: dict[str, Any],
    started: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write the files of a page (dicts as JSON) and the manifest, and return it. `started` is from `time.monotonic`."""
    title = "comparison" if stage == "compare" else stage
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a manifest the stage is incomplete, until the new one is written.
        (folder / MANIFEST).unlink(missing_ok=True)
        for name, content in contents.items():
            if isinstance(content, str):
                write_atomically(folder / name, content)
            else:
                write_json(folder / name, content)
        seconds = round(time.monotonic() - started, 3)
        value = manifest.write(folder, stage, contents, inputs, {**details, "seconds": seconds})  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, f"publish the {title}") from error
    size = human_size(value["files"]["index.html"]["size"])
    reporter.note(f"{title} ready in {seconds:.1f} s: {folder / 'index.html'} ({size})")
    return value


def dataset_facts(dataset_id: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about a data set that a page shows; `details` come from its manifest."""
    keys = ("name", "digest", "train_images", "test_images", "sample", "official", "label", "classes", "archive_sha256")
    return {"id": dataset_id, **{key: details.get(key) for key in keys}}


def _template(path: Path, **options: Any) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, _TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters.update(formats.FILTERS)
    return environment.get_template(path.name)
