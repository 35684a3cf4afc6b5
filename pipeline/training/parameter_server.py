"""A scheduler or server of MXNet's parameter server: `python -m pipeline.training.parameter_server SUPERVISOR`.

As `mxnet.kvstore_server`, without loading the rest of MXNet, and with heartbeats.
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
    """Be the `scheduler` or a `server`, as DMLC_ROLE says, until killed."""
    die_with_supervisor(supervisor)
    os.umask(0o077)  # for its socket
    reporter = Reporter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    liveness.start_heartbeats(reporter, HEARTBEAT_SECONDS)
    library, store = native_library(), ctypes.c_void_p()
    spinning.watch(library, lambda line: None)
    # The workers send no optimizer: nothing but the switch to synchronous sums ever comes, which needs no answer here.
    ignore = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda head, body, store: None)
    if library.MXKVStoreCreate(b"dist", ctypes.byref(store)) or library.MXKVStoreRunServer(store, ignore, None):
        library.MXGetLastError.restype = ctypes.c_char_p
        raise SystemExit(
            f"MXNet's {os.environ['DMLC_ROLE']} failed: {library.MXGetLastError().decode(errors='replace')}"
        )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
