"""Checks on import that `pipeline` is this plugin's: another one would break the imports in obscure ways."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tasks.exit_codes import BAD_CONFIGURATION, command_module


def check() -> None:
    """Raise `ImportError` if it is not. The `luigi` command exits with 2 and one line instead."""
    ours = Path(__file__).resolve().parents[1] / "pipeline"
    spec = importlib.util.find_spec("pipeline")
    other = Path(spec.origin or "pipeline") if spec else None
    if other is None or other.resolve() == ours / "__init__.py":
        return
    text = (
        f"{other} hides this plugin's pipeline ({ours}) on the Python path: "
        "remove its folder from PYTHONPATH, or run luigi --module luigi_vgg"
    )
    if command_module() is not None:
        print(text, file=sys.stderr)
        raise SystemExit(BAD_CONFIGURATION)
    raise ImportError(text)


check()
