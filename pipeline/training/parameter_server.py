"""A scheduler or server of MXNet's parameter server: `python -m pipeline.training.parameter_server SUPERVISOR`.

Like `mxnet.kvstore_server`, but sends heartbeats and does not load the rest of MXNet.
"""

from __future__ import annotations

import ctypes
import os
import sys

from pipeline.process import liveness, spinning
from pipeline.process.reporter import Reporter
from pipeline.runtime import native_library
from pipeline.training.distributed import HEARTBEAT_SECONDS, die_with_supervisor


def serve(supervisor: int) -> None:
    """Run the role in DMLC_ROLE, `scheduler` or `server`, until killed."""
    die_with_supervisor(supervisor)
    os.umask(0o077)  # for its socket
    reporter = Reporter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    liveness.start_heartbeats(reporter, HEARTBEAT_SECONDS)
    library, store = native_library(), ctypes.c_void_p()
    spinning.watch(library, lambda line: None)
    # Workers send no optimizer, only the command to sum synchronously, which needs no handling here.
    ignore = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda head, body, store: None)
    if library.MXKVStoreCreate(b"dist", ctypes.byref(store)) or library.MXKVStoreRunServer(store, ignore, None):
        library.MXGetLastError.restype = ctypes.c_char_p
        raise SystemExit(
            f"MXNet's {os.environ['DMLC_ROLE']} failed: {library.MXGetLastError().decode(errors='replace')}"
        )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
