"""`python -m pipeline.runtime`: show what a training would compute on; exit status 1 when it cannot."""

import sys

from pipeline.errors import DeviceError
from pipeline.runtime import devices, resolve_precision


def main() -> int:
    try:
        where = devices("auto")
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"device auto: {where.name} works; precision auto means {resolve_precision('auto', where)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
