"""`python -m pipeline.predict`: the command `vgg-predict`."""

import sys

from pipeline.predict import main

if __name__ == "__main__":
    sys.exit(main())
