"""A clock that stands still while this process does not run.

The process may be stopped, starved by others or moved to another machine. When it goes on, every deadline seems to have
passed and every node to have been silent. On this clock no time has passed, so deadlines are as much later, and replies
that have arrived meanwhile are read first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf

__all__ = ["StallClock"]

TICK_S = 0.05
STALL_S = 0.2  # without a tick; shorter ones happen on a busy machine, and matter little to any deadline


class StallClock:
    """Monotonic time in seconds, without stalls; call it to read it.

    ``keep`` must run in the event loop. Without ticks, times between two readings would count as stalls.

    Args:
        clock: monotonic time in seconds, with stalls.

    Attributes:
        stalled_s: length of all stalls.
    """

    __slots__ = ("_clock", "_last", "_stalled_at", "stalled_s")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, inf
        self.stalled_s, self._stalled_at = 0.0, -inf

    def __call__(self) -> float:
        """The time; the first reading after a stall finds it."""
        now = self._clock()
        if now - self._last > STALL_S:
            self.stalled_s += now - self._last - TICK_S
            self._stalled_at = now - self.stalled_s
        if self._last < now:
            self._last = now
        return now - self.stalled_s

    def stalled_since(self, at: float) -> bool:
        """Whether a stall has ended since a time on this clock."""
        return self._stalled_at >= at

    async def keep(self) -> None:
        """Ticks for ever."""
        self._last = self._clock()
        try:
            while True:
                self()
                await asyncio.sleep(TICK_S)
        finally:
            self._last = inf
