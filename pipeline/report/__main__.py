"""`python -m pipeline.report`: render a report in a separate process, see `pipeline.process`."""

from pipeline.process import child
from pipeline.report import render

if __name__ == "__main__":
    child.exit_with(child.main(render))
