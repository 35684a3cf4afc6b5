"""`python -m pipeline.report`: the report in a process of its own, see `pipeline.process`."""

from pipeline.process import child
from pipeline.report import render

if __name__ == "__main__":
    child.exit_with(child.main(render))
