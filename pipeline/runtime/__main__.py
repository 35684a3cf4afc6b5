"""`python -m pipeline.runtime [device]`: say what a training would compute on."""

import sys

from pipeline.runtime import main

if __name__ == "__main__":
    sys.exit(main())
