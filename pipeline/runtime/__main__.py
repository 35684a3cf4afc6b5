"""`python -m pipeline.runtime [device]`: show what a training would compute on; exit status 1 when it cannot."""

import sys

from pipeline.errors import DeviceError
from pipeline.runtime import devices, resolve_precision


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else "auto"
    try:
        where = devices(wanted)
        print(f"device {wanted}: {where.name} works; precision auto means {resolve_precision('auto', where)}")
        return 0
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
