"""Slows down callers that show wrong tokens, so that tokens cannot be guessed at the speed of the network.

After a few wrong tokens from one network address, every further token from there waits before it is compared, longer
each time. A connection that has shown a right token is exempt: other clients at the same address, behind one router or
on one machine, go on undisturbed. The memory is bounded, and an address is forgotten after a minute without failures.

Limit: a caller with many addresses waits at each of them only. A token of 16 random characters is safe all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nonn.errors import OverloadError
from nonn.rpc.address import peer_host

__all__ = ["Brake"]

FREE = 3  # wrong tokens before the first wait: a typing error, a file that was not copied yet
FIRST_S, LONGEST_S = 0.1, 1.0  # a join waits 5 s for its answer
FORGOTTEN_S = 60.0
MAX_WAITING = 64  # calls of one address
MAX_ADDRESSES, MAX_PROVEN = 1024, 4096


@dataclass(slots=True)
class _Record:
    """Wrong tokens of one address, when the last one came, and calls that wait."""

    wrong: int = 0
    last: float = 0.0
    waiting: int = 0


class Brake:
    """The callers of one server.

    Args:
        clock: monotonic time in seconds.
        sleep: waits a number of seconds.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._records: OrderedDict[str, _Record] = OrderedDict()  # by address, the latest failure last
        self._proven: OrderedDict[str, None] = OrderedDict()  # connections, the latest last

    async def wait(self, peer: str) -> None:
        """Waits before the token of a call is compared.

        Args:
            peer: address and port of the connection, as gRPC writes them.

        Raises:
            OverloadError: too many calls of its address wait already.
        """
        host = peer_host(peer)
        record = self._records.get(host)
        if record is None or peer in self._proven or record.wrong < FREE:
            return
        if self._clock() - record.last > FORGOTTEN_S:
            self._records.pop(host, None)
            return
        if record.waiting >= MAX_WAITING:
            raise OverloadError(f"{host}: too many calls with wrong tokens; try again in a minute")
        record.waiting += 1
        try:
            await self._sleep(min(LONGEST_S, FIRST_S * 2.0 ** min(record.wrong - FREE, 16)))
        finally:
            record.waiting -= 1

    def passed(self, peer: str) -> None:
        """A connection has shown a right token."""
        self._proven[peer] = None
        self._proven.move_to_end(peer)
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    def failed(self, peer: str) -> None:
        """A connection has shown a wrong token."""
        self._proven.pop(peer, None)
        record = self._records.setdefault(host := peer_host(peer), _Record())
        record.wrong, record.last = record.wrong + 1, self._clock()
        self._records.move_to_end(host)
        if len(self._records) > MAX_ADDRESSES:
            self._records.popitem(last=False)
