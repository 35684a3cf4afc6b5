"""`python -m pipeline.report`, started by `launch.run_stage`."""

from pipeline.process import child
from pipeline.report import render

if __name__ == "__main__":
    child.exit_with(child.main(render))
