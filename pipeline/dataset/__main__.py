"""`python -m pipeline.dataset`: the data set stage in a process of its own, see `pipeline.process.child`."""

from pipeline.dataset import prepare
from pipeline.process.child import exit_with, main

if __name__ == "__main__":
    exit_with(main(lambda chain, reporter, options: prepare(chain, reporter)))
