"""The tasks under a unique module name: `luigi --module luigi_vgg Report`.

Use it when another `tasks` or `pipeline` comes first on the Python path: it imports this plugin's packages instead and
says so. It is installed beside the two packages or elsewhere on the Python path.
"""

import importlib.util
import sys
from pathlib import Path


def _plugin_root() -> Path:
    folders = (Path(__file__).resolve().parent, *map(Path, sys.path))
    markers = ("pipeline/start.py", "tasks/neighbours.py")
    return next(folder for folder in folders if all((folder / marker).is_file() for marker in markers))


def _import_ours(name: str) -> None:
    """Import this plugin's package `name`. Raises `ImportError` if another one is already imported."""
    ours = _plugin_root() / name
    existing = importlib.util.find_spec(name)
    other = Path(existing.origin or name) if existing else None
    if other is None or other.resolve() == ours / "__init__.py":
        return
    if name in sys.modules:
        raise ImportError(f"{name} is already imported from {other}, not from {ours}: use them in separate programs")
    print(f"{name}: using {ours} instead of {other}, which comes first on the Python path", file=sys.stderr)
    spec = importlib.util.spec_from_file_location(name, ours / "__init__.py", submodule_search_locations=[str(ours)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_import_ours("pipeline")
_import_ours("tasks")

from tasks import *  # noqa: E402, F403
