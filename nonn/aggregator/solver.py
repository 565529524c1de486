"""Fusion heads solved outside of the event loop.

A ridge head solves a linear system for every new subset of devices: tens of milliseconds for wide features, during
which no other request would be answered. So a thread solves the subsets of the next likely failures ahead; a request
with any other subset waits for its own solution only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

from nonn.fusion import Head
from nonn.reliability.subsets import mask_of, members
from nonn.rpc.background import Background

__all__ = ["HeadSolver"]

AHEAD_FAILURES = 2
AHEAD_SETS = 256  # up to two failures of 16 devices give 137 subsets


class HeadSolver:
    """Solves heads before requests need them.

    Args:
        head: fusion head of the bundle.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        # Two threads, so that the subset of a request never queues behind those that are solved ahead.
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="solve")
        self._tasks, self._ahead = Background(), None

    _ahead: asyncio.Task[None] | None

    async def ensure(self, mask: int) -> None:
        """Solves a subset unless it is already solved."""
        if mask and not self._head.is_solved(mask):
            await asyncio.get_running_loop().run_in_executor(self._executor, self._head.weights, mask)

    def look_ahead(self, devices: Iterable[int]) -> None:
        """Starts to solve the subsets left by few failures of these devices, most likely first."""
        if self._ahead is not None:
            self._ahead.cancel()
        self._ahead = self._tasks.start(self._solve(_sets(mask_of(devices))), "solving heads ahead")

    async def _solve(self, masks: Iterable[int]) -> None:
        for mask in masks:
            await self.ensure(mask)

    async def close(self) -> None:
        """Stops solving ahead."""
        await self._tasks.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _sets(everyone: int) -> Iterator[int]:
    """A subset, the same without one device, without two: at most 256."""
    devices, count = members(everyone), 0
    for failed in range(AHEAD_FAILURES + 1):
        for gone in combinations(devices, failed):
            mask = everyone & ~mask_of(gone)
            if mask and count < AHEAD_SETS:
                count += 1
                yield mask
