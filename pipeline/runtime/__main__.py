"""`python -m pipeline.runtime`: show the device that a training would use; exits with status 1 if it does not work."""

import sys

from pipeline.errors import DeviceError
from pipeline.runtime import devices, resolve_precision


def main() -> int:
    try:
        found = devices("auto")
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"device auto: {found.name} works; precision auto means {resolve_precision('auto', found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
