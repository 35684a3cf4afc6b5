"""`python -m pipeline.comparison`, started by `launch.run_stage`."""

from pipeline import stage
from pipeline.comparison.ranking import render

if __name__ == "__main__":
    stage.exit_with(stage.main(render))
