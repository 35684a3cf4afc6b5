"""Starts a module of this very package in a process of its own: `python …/pipeline/start.py MODULE [ARGUMENT…]`.

Run by its path, one way under every Python. The new process looks for libraries where its parent did, in the same
order; `pipeline` is the package that this file belongs to, whatever else has that name. Imports nothing of it itself.
"""

import os
import sys

#: For a Python that finds the package by its own means, in a folder that it may not import from.
CODE = "import sys; sys.path = list(filter(None, sys.path)); from pipeline import start; start.run()"


def run() -> None:
    """Be the module that the command line names."""
    folder = os.path.dirname(os.path.abspath(__file__))
    # Python puts the folder of a script in front, which is no place to import from.
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
    sys.path.append(os.path.dirname(folder))  # last: behind the standard library
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
