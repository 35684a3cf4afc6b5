"""`python -m pipeline.training`: run a training as a stage's process, see `pipeline.process.child`."""

import sys

from pipeline.process.child import exit_with, main
from pipeline.runtime import mxnet
from pipeline.training import precision, train


def imports() -> None:
    """Preload what the training needs, in this process and in the one that measures precisions."""
    if "auto" in sys.argv:  # the configured precision, see `parent.start_early`
        precision.start_early()
    mxnet()


if __name__ == "__main__":
    exit_with(main(train, graceful=True, imports=imports))
