"""Run a module of this package in a new process: `python …/pipeline/start.py MODULE [ARGUMENT…]`.

Running it by path works the same under every Python. The new process searches for libraries in its parent's order, and
`pipeline` is always the package of this file, whatever else has that name. This module itself imports nothing
from `pipeline`.
"""

import os
import sys

#: For `python -c` where Python finds the package itself; drops the current folder, which must not be imported from.
CODE = "import sys; sys.path = list(filter(None, sys.path)); from pipeline import start; start.run()"


def run() -> None:
    """Run the module named on the command line as `__main__`."""
    folder = os.path.dirname(os.path.abspath(__file__))
    # Python puts the script's folder first, where nothing should be imported from.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != folder]
    import importlib.util
    import runpy

    if "pipeline" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "pipeline", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        assert spec is not None
        assert spec.loader is not None
        package = sys.modules["pipeline"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    sys.path.append(os.path.dirname(folder))  # last, so that it cannot shadow the standard library
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
