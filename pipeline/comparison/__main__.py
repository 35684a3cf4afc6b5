"""`python -m pipeline.comparison`, started by `launch.run_stage`."""

from pipeline.comparison.ranking import render
from pipeline.process import child

if __name__ == "__main__":
    child.exit_with(child.main(render))
