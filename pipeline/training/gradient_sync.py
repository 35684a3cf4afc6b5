"""All-reduce: sum the gradients of several devices and workers with MXNet's own kvstores.

`local` and `device` sum between the devices of one process; `dist_sync` and `dist_device_sync` between workers, each of
which sees its own part of every batch and applies the same update. Does not import MXNet; callers pass it in.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.runtime import Devices

#: Bits of a float32 significand: sums of multiples of a unit are exact below 2 ** 24 units.
_SIGNIFICAND = 24

#: Keeps stores alive: freeing a `dist` store blocks until all other workers free theirs, even dead ones.
_kept: list[Any] = []


@dataclass(frozen=True)
class Worker:
    """Rank and number of workers. The leader, worker 0, writes files and reports."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_leader(self) -> bool:
        return self.rank == 0


class ProcessGroup:
    """All workers and their devices. Every worker must make the same calls in the same order."""

    def __init__(self, mx: Any, devices: Devices, worker: Worker) -> None:
        self.mx, self.devices, self.worker = mx, devices, worker
        self._parameter_count = 0
        self._rows: list[Any] = []
        self._store: Any = None
        if worker.world_size > 1:
            umask = os.umask(0o077)  # for the store's socket
            self._store = mx.kv.create("dist_device_sync" if devices.is_gpu else "dist_sync")
            os.umask(umask)
            _kept.append(self._store)
        elif len(devices.contexts) > 1:
            self._store = mx.kv.create("device" if devices.is_gpu else "local")

    def prepare(self, weights: list[Any]) -> None:
        """Allocate buffers for gradients shaped like `weights`, once."""
        if self._store is None or self._parameter_count:
            return
        self._parameter_count = len(weights)
        for index, weight in enumerate(weights):
            self._store.init(index, weight)
        if self.worker.world_size > 1:
            for offset, width in enumerate((2, len(weights), 2)):
                rows = self.mx.nd.zeros((self.worker.world_size, width), ctx=self.devices.contexts[0])
                self._store.init(len(weights) + offset, rows)
                self._rows.append(rows)

    def all_reduce_gradients(self, gradients: list[list[Any]], parts: int) -> None:
        """Replace each parameter's gradients (one copy per device) by the sum over the first `parts` devices."""
        if self._store is None:
            return
        for copies in gradients:
            for unused in copies[parts:]:  # the batch was smaller than the number of devices
                unused[:] = 0
        if self.worker.world_size > 2:
            self._round_to_a_common_grid(gradients)
        for index, copies in enumerate(gradients):
            self._store.pushpull(index, copies, priority=-index)

    def all_reduce_tallies(self, tallies: list[tuple[Any, Any]]) -> Any:
        """Sum pairs of (1,) arrays over all workers; returns a (2,) array on the first device."""
        own = self.mx.nd.zeros((2,), ctx=self.devices.contexts[0])
        for pair in tallies:
            own = own + self.mx.nd.concat(*(value.reshape(1) for value in pair), dim=0).as_in_context(own.context)
        return self._all_gather(0, own).sum(axis=0)

    def check_same(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Wait for all workers; raise `PipelineError` unless they have the same `arrays` and `step`."""
        if self.worker.world_size == 1:
            return
        digest = 0
        for name in sorted(arrays):
            digest = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), digest))
        own = self.mx.nd.array([digest % 2**24, step % 2**24], ctx=self.devices.contexts[0])
        gathered = self._all_gather(2, own).asnumpy()
        if (gathered != gathered[0]).any():
            raise PipelineError("the workers do not start from the same state: do all hosts see the same workspace?")

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run the block on the leader before the other workers."""
        if not self.worker.is_leader:
            self.barrier()
        yield
        if self.worker.is_leader:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.worker.world_size > 1:
            self.mx.nd.waitall()
            self._store._barrier()

    def leave(self) -> None:
        """Leave the group: the leader waits for the others, which wait at most 5 s for it. Then the server may exit."""
        if self.worker.is_leader:
            self.barrier()
        elif self.worker.world_size > 1:
            self.mx.nd.waitall()
            waiting = threading.Thread(target=self._store._barrier, daemon=True)
            waiting.start()
            waiting.join(timeout=5)

    def _all_gather(self, offset: int, own: Any) -> Any:
        """Gather every worker's (n,) array into a (workers, n) array: the sum of arrays with one row each.

        The array is valid until the next call. It is always the same one, so that MXNet sends it only after the answer
        to the call before: the server counts requests, and would take two of one worker for those of two workers.
        """
        rows = self._rows[offset]
        rows[:] = 0
        rows[self.worker.rank] = own
        self._store.pushpull(self._parameter_count + offset, [rows])
        return rows

    def _round_to_a_common_grid(self, gradients: list[list[Any]]) -> None:
        """Make sums over three or more workers independent of the order in which the server adds them.

        Rounds a parameter's gradients to multiples of one power of two, chosen so that every sum is exact in float32:
        with 4 workers, 2**-22 of the largest value. Two workers need no rounding.
        """
        nd, first = self.mx.nd, self.devices.contexts[0]
        largest = [
            nd.max(nd.concat(*(nd.max(nd.abs(copy)).reshape(1).as_in_context(first) for copy in copies), dim=0))
            for copies in gradients
        ]
        limits = self._all_gather(1, nd.concat(*(value.reshape(1) for value in largest), dim=0)).asnumpy().max(axis=0)
        addends = self.worker.world_size * len(self.devices.contexts)
        for limit, copies in zip(limits, gradients, strict=True):
            if not (0 < limit < math.inf):
                continue
            unit = 2.0 ** (math.frexp(float(limit) * addends)[1] - _SIGNIFICAND)
            for copy in copies:
                copy[:] = nd.rint(copy / unit) * unit
