"""`python -m pipeline.training`: the training in a process of its own, see `pipeline.process.child`."""

from pipeline.process.child import exit_with, main
from pipeline.runtime import mxnet
from pipeline.training import train

if __name__ == "__main__":
    exit_with(main(train, graceful=True, imports=mxnet))
