"""Fusion heads solved outside of the event loop; no answer waits long for one.

A ridge head solves a linear system for every new subset of devices: a millisecond for 8 × 64 features, tens of
milliseconds for 8 × 256. Threads solve ahead: the subset of all nodes and every device alone before the first request,
then subsets with one and two failures, then pairs, then all others, as far as the cache of the head allows.

A request with a subset that is not solved yet waits for at most a limit. Then the solved subset of its devices with
the highest accuracy is fused instead, and the answer states that subset with its accuracy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations

from nonn.fusion import Head
from nonn.reliability.subsets import mask_of, members
from nonn.reliability.table import AccuracyOf
from nonn.telemetry.background import Background

__all__ = ["HeadSolver"]

AHEAD_SETS = 256  # all subsets of eight devices


class HeadSolver:
    """Solves heads before requests need them.

    Args:
        head: fusion head of the bundle.
        accuracy: accuracy of every subset.
        wait_s: how long a request waits for the solution of its own subset.
    """

    def __init__(self, head: Head, accuracy: AccuracyOf, wait_s: float) -> None:
        self._head, self._accuracy, self._wait_s = head, accuracy, wait_s
        # Two threads, so that the subset of a request never queues behind those that are solved ahead.
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="solve")
        self._solving: dict[int, asyncio.Future[None]] = {}
        self._tasks, self._ahead = Background(), None

    _ahead: asyncio.Task[None] | None

    async def prepare(self, devices: Iterable[int]) -> None:
        """Solves the subset of all these devices and that of each alone, so that any request can be answered."""
        devices = tuple(devices)
        for mask in dict.fromkeys([mask_of(devices), *(1 << device for device in devices)]):
            await self.ensure(mask)

    async def ensure(self, mask: int) -> None:
        """Solves a subset unless it is already solved."""
        if not mask or self._head.is_solved(mask):
            return
        if (solving := self._solving.get(mask)) is None:
            solving = asyncio.get_running_loop().run_in_executor(self._executor, self._head.solve, mask)
            self._solving[mask] = solving
            solving.add_done_callback(lambda _: self._solving.pop(mask, None))
        await asyncio.shield(solving)  # others may wait for the same solution

    async def choose(self, mask: int, quorum: int) -> int:
        """The subset to fuse.

        Args:
            mask: the devices that answered.
            quorum: fewest devices of the result.

        Returns:
            ``mask`` if its head is solved within the limit, else the solved subset of it with the highest accuracy;
            without any of at least ``quorum`` devices it is waited for.
        """
        if self._head.is_solved(mask):
            return mask
        try:
            async with asyncio.timeout(self._wait_s):
                await self.ensure(mask)
            return mask
        except TimeoutError:
            solved = [m for m in self._head.solved() if m & ~mask == 0 and m.bit_count() >= quorum]
        if not solved:
            await self.ensure(mask)
            return mask
        return max(solved, key=lambda m: (self._accuracy[m], m))

    def look_ahead(self, devices: Iterable[int]) -> None:
        """Starts to solve subsets of these devices, the most likely first."""
        if self._ahead is not None:
            self._ahead.cancel()
        self._ahead = self._tasks.start(self._solve(mask_of(devices)), "solving heads ahead")

    async def _solve(self, everyone: int) -> None:
        # Smaller subsets may fit where larger ones no longer do.
        left = self._head.cache_bytes
        for mask in _sets(everyone):
            if (size := self._head.solved_bytes(mask)) <= left:
                left -= size
                await self.ensure(mask)

    async def close(self) -> None:
        """Stops solving ahead."""
        await self._tasks.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _sets(everyone: int) -> Iterator[int]:
    """At most 256 subsets: all devices, each alone, one and two failures, pairs, and then by number of failures."""
    devices = members(everyone)
    sizes = dict.fromkeys([len(devices), 1, *(len(devices) - failed for failed in (1, 2)), 2])
    order = chain(sizes, (size for size in range(len(devices) - 3, 2, -1) if size not in sizes))
    subsets = (mask_of(kept) for size in order if size > 0 for kept in combinations(devices, size))
    for count, mask in enumerate(subsets):
        if count == AHEAD_SETS:
            return
        yield mask
