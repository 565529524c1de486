"""A budget of bytes for requests under way, and memory given back after large ones.

A limit of samples does not limit memory: 64 clients with one legal message of 12 MB each take gigabytes. ``ByteBudget``
counts the bytes of messages before they are parsed, which copies them, and refuses what exceeds the budget.

The C library (glibc) keeps freed memory in its arenas, so a process would stay as large as at its peak. After large
messages ``malloc_trim`` makes it return what it can.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
from typing import Any

from nonn.errors import OverloadError
from nonn.rpc.wire import MAX_MESSAGE_BYTES

__all__ = ["MAX_HELD_BYTES", "ByteBudget"]

MAX_HELD_BYTES = MAX_MESSAGE_BYTES  # one message of the largest size that gRPC accepts, or many smaller ones
LARGE_BYTES = 256 * 1024  # smaller messages leave nothing behind
TRIM_AFTER_BYTES = 16 * 1024 * 1024  # of large messages
TRIMS = 5
TRIM_DELAY_S = 1.0  # at most one trim in this time: it takes some milliseconds


class ByteBudget:
    """Counts the bytes of requests from their arrival to their answer; used in the event loop.

    Args:
        most: bytes of all requests under way; a single request may always have ``largest``.
        largest: bytes of the largest request.
    """

    def __init__(self, most: int, largest: int) -> None:
        self._most, self._held = max(most, largest), 0
        self._large, self._trims, self._timer = 0, 0, False

    def take(self, num_bytes: int) -> None:
        """A request has arrived; ``give`` must follow unless this raises.

        Raises:
            OverloadError: the budget is used up.
        """
        if num_bytes >= LARGE_BYTES:
            self._large += num_bytes
            if self._large >= TRIM_AFTER_BYTES:
                self._large, self._trims = 0, TRIMS
                self._trim_later()
        if self._held + num_bytes > self._most:
            raise OverloadError(
                f"requests of {self._held / 1e6:.0f} MB are under way, and this one of {num_bytes / 1e6:.1f} MB is "
                f"over the budget of {self._most / 1e6:.0f} MB; try again later, or send fewer samples per request"
            )
        self._held += num_bytes

    def give(self, num_bytes: int) -> None:
        """A request is answered."""
        self._held -= num_bytes

    def _trim_later(self) -> None:
        if not self._timer and _malloc_trim() is not None:
            self._timer = True
            asyncio.get_running_loop().call_later(TRIM_DELAY_S, self._trim)

    def _trim(self) -> None:
        self._timer, trim = False, _malloc_trim()
        assert trim is not None
        if self._held < LARGE_BYTES:
            gc.collect()  # failed calls are in cycles with the frames that hold their messages
        # In a thread; ctypes lets others run meanwhile.
        asyncio.get_running_loop().run_in_executor(None, trim, 0)
        # Again while such requests are under way, and some times after them: gRPC frees its buffers later.
        self._trims = TRIMS if self._held >= LARGE_BYTES else self._trims - 1
        if self._trims > 0:
            self._trim_later()


@functools.cache
def _malloc_trim() -> Any:
    """The function of glibc; None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
