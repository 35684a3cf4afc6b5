"""Checks, when it is imported, that `pipeline` is this plugin's: another one breaks the imports in obscure ways."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tasks.exit_codes import BAD_CONFIGURATION, module_of_the_command


def check() -> None:
    """Raise `ImportError` when it is not; end the `luigi` command with one line and exit code 2."""
    ours = Path(__file__).resolve().parents[1] / "pipeline"
    found = importlib.util.find_spec("pipeline")
    other = Path(found.origin or "pipeline") if found else None
    if other is None or other.resolve() == ours / "__init__.py":
        return
    text = (
        f"{other} hides this plugin's pipeline ({ours}) on the Python path: "
        "remove its folder from PYTHONPATH, or run luigi --module luigi_vgg"
    )
    if module_of_the_command() is not None:
        print(text, file=sys.stderr)
        raise SystemExit(BAD_CONFIGURATION)
    raise ImportError(text)


check()
