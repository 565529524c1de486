"""Runs a student for many requests, one run at a time and in the order of their arrival.

A short run is done right in the event loop: handing it to a thread and waking up again costs 70 to 200 µs, ten times
what a small student itself takes. A long one goes to the thread, so that health checks are answered meanwhile. Which
it is follows from the last runs' own time, so a device that gets hot and slow changes over by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from typing import Any

from nonn.errors import OverloadError
from nonn.rpc.wire import Array

__all__ = ["Worker"]

INLINE_S = 0.001  # the longest run in the event loop; health checks wait that long at most
# The shortest of these counts, since on a busy machine others are interrupted. The first of them go to the thread.
REMEMBERED_RUNS = 4


class Worker:
    """One thread that runs batches, and the event loop that may do it instead.

    Args:
        run: batch [B, …] → features [B, d]; never called twice at once.
        max_queue: requests that may wait for the thread.
        clock: seconds that never go back.
    """

    def __init__(
        self, run: Callable[[Array], Array], max_queue: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._run, self._max_queue, self._clock = run, max_queue, clock
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._sample_s: deque[float] = deque(maxlen=REMEMBERED_RUNS)
        self._shortest_s = inf  # of these, once there are so many
        self._waiting = 0

    def close(self) -> None:
        """Ends the thread; what waits is dropped."""
        self._executor.shutdown(cancel_futures=True)

    def now(self, batch: Array) -> Array | None:
        """Features of one batch, if nothing waits and the last runs say that it fits into the event loop; else None."""
        # Nearly every request comes by here, on a small device with cold caches: no call that is not needed.
        return None if self._waiting or self._shortest_s * len(batch) > INLINE_S else self._timed(batch)

    async def __call__(self, batch: Array, *, limited: bool = True) -> Array:
        """Features of one batch.

        Args:
            batch: [B, …].
            limited: whether ``max_queue`` holds for it.

        Raises:
            OverloadError: too many requests are waiting.
        """
        if (features := self.now(batch)) is not None:
            return features
        if limited and self._waiting >= self._max_queue:
            raise OverloadError(
                f"{self._waiting} requests are waiting for this device, its limit (--max-queue); "
                "ask it less often, or give its part to a second device too"
            )
        loop = asyncio.get_running_loop()
        future = self._executor.submit(self._timed, batch)
        self._waiting += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done():
                self._waiting -= 1
            else:  # the caller has given up, but the thread may be in its run: nothing may run beside it
                future.add_done_callback(lambda done: self._leave_later(loop, done))

    def _timed(self, batch: Array) -> Array:
        """Runs one batch and remembers how long a sample took."""
        start = self._clock()
        features = self._run(batch)
        self._sample_s.append((self._clock() - start) / len(batch))
        if len(self._sample_s) == REMEMBERED_RUNS:
            self._shortest_s = min(self._sample_s)
        return features

    def _leave_later(self, loop: asyncio.AbstractEventLoop, done: Future[Any]) -> None:
        """From the thread: one fewer is waiting."""
        with contextlib.suppress(RuntimeError):  # the loop is already closed
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._waiting -= 1
