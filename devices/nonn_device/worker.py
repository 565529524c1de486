"""Runs a student for many requests, one run at a time, in order of arrival.

A short run happens in the event loop: passing it to a thread and waking up again costs 70 to 200 µs, ten times the run
of a small student. A long run happens in a thread, so that health checks are answered meanwhile. The durations of the
last runs decide, so a device that gets hot and slow switches automatically.
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

INLINE_S = 0.001  # the longest run in the event loop; health checks wait at most that long
# The shortest of the last runs decides, since a busy machine interrupts some of them.
REMEMBERED_RUNS = 4


class Worker:
    """Runs batches in one thread, or in the event loop if they are short.

    Args:
        run: batch [B, …] → features [B, d]; never called concurrently.
        max_queue: requests that may wait for the thread.
        clock: monotonic clock, in seconds.
        inline: whether short runs happen in the event loop; not if a run waits for another machine.
    """

    def __init__(
        self,
        run: Callable[[Array], Array],
        max_queue: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        inline: bool = True,
    ) -> None:
        self._run, self._max_queue, self._clock = run, max_queue, clock
        self._inline_s = INLINE_S if inline else 0.0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._sample_s: deque[float] = deque(maxlen=REMEMBERED_RUNS)
        self._shortest_s = inf  # of the remembered runs; until there are four, runs happen in the thread
        self._waiting = 0

    def close(self) -> None:
        """Ends the thread; drops waiting requests."""
        self._executor.shutdown(cancel_futures=True)

    def now(self, batch: Array) -> Array | None:
        """Features of one batch, if nothing waits and the last runs were short enough for the event loop; else None."""
        # Nearly every request passes here, on a small device with cold caches: no unnecessary calls.
        return None if self._waiting or self._shortest_s * len(batch) > self._inline_s else self._timed(batch)

    async def __call__(self, batch: Array, *, limited: bool = True) -> Array:
        """Features of one batch.

        Args:
            batch: [B, …].
            limited: whether ``max_queue`` applies.

        Raises:
            OverloadError: too many requests are waiting.
        """
        if (features := self.now(batch)) is not None:
            return features
        if limited and self._waiting >= self._max_queue:
            raise OverloadError(
                f"{self._waiting} requests are waiting for this device, its limit (--max-queue); "
                "send fewer requests, or assign its part to a second device too"
            )
        loop = asyncio.get_running_loop()
        future = self._executor.submit(self._timed, batch)
        self._waiting += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done():
                self._waiting -= 1
            else:  # the caller has given up, but the thread may still run it: no other run may start
                future.add_done_callback(lambda done: self._leave_later(loop, done))

    def _timed(self, batch: Array) -> Array:
        """Runs one batch and records the time per sample."""
        start = self._clock()
        features = self._run(batch)
        self._sample_s.append((self._clock() - start) / len(batch))
        if len(self._sample_s) == REMEMBERED_RUNS:
            self._shortest_s = min(self._sample_s)
        return features

    def _leave_later(self, loop: asyncio.AbstractEventLoop, done: Future[Any]) -> None:
        """Called from the thread: one request fewer is waiting."""
        with contextlib.suppress(RuntimeError):  # the loop is already closed
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._waiting -= 1
