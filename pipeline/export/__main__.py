"""`python -m pipeline.export`: the export in a process of its own, see `pipeline.process`."""

from pipeline.export import converter, export
from pipeline.process import child

if __name__ == "__main__":
    child.exit_with(child.main(export, imports=converter))
