"""`python -m pipeline.export`: the export in a process of its own, see `pipeline.process.child`."""

from pipeline.export import export
from pipeline.process.child import exit_with, main

if __name__ == "__main__":
    exit_with(main(export))
