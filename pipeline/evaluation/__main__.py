"""`python -m pipeline.evaluation`: the evaluation in a process of its own, see `pipeline.process.child`."""

from pipeline.evaluation import evaluate
from pipeline.process.child import exit_with, main
from pipeline.runtime import mxnet

if __name__ == "__main__":
    exit_with(main(evaluate, imports=mxnet))
