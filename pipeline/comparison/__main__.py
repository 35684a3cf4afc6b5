"""`python -m pipeline.comparison`: render a comparison in a separate process, see `pipeline.process`."""

from pipeline.comparison.ranking import render
from pipeline.process import child

if __name__ == "__main__":
    child.exit_with(child.main(render))
