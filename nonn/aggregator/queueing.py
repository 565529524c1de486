"""Queue of requests that wait to share a fan-out, and its timer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from math import inf

from nonn.answer import Answer
from nonn.errors import OverloadError
from nonn.rpc.wire import Array

__all__ = ["Alarm", "Member", "Queue"]


@dataclass(eq=False, slots=True)
class Member:
    """One client's request."""

    batch: Array
    arrived_at: float
    deadline_at: float
    answer: asyncio.Future[Answer]
    context: Context  # continues its trace


class Queue:
    """Requests that wait, in the order of arrival.

    Attributes:
        num_samples: number of samples of all of them.
    """

    def __init__(self) -> None:
        self._members: deque[Member] = deque()
        self.num_samples = 0

    def __bool__(self) -> bool:
        return bool(self._members)

    @property
    def oldest_at(self) -> float:
        """Arrival time of the first request."""
        return self._members[0].arrived_at

    def push(self, member: Member) -> None:
        """Adds one."""
        self._members.append(member)
        self.num_samples += len(member.batch)

    def pop(self, limit: int, now: float) -> list[Member]:
        """Takes the next requests that can share a fan-out: one dtype, at most ``limit`` samples, at least one request.

        Requests whose client has given up are dropped; those whose deadline has passed are refused.
        """
        taken, total = list[Member](), 0
        while self._members:
            member = self._members[0]
            if not member.answer.done():
                if member.deadline_at <= now:
                    waited_s = now - member.arrived_at
                    member.answer.set_exception(OverloadError(f"waited {waited_s:.2f} s, until the client's deadline"))
                elif taken and (total + len(member.batch) > limit or member.batch.dtype != taken[0].batch.dtype):
                    break
                else:
                    taken.append(member)
                    total += len(member.batch)
            self._members.popleft()
            self.num_samples -= len(member.batch)
        return taken


class Alarm:
    """One timer of the event loop, which rings at the earliest requested time, or slightly before.

    Args:
        ring: called then; sets the alarm again if it is too early, since uvloop rounds to milliseconds.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.Handle | None = None
        self._at = inf

    def set(self, at: float) -> None:
        """Requests a ring at this time of the event loop."""
        if at < self._at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._at = asyncio.get_running_loop().call_at(at, self._rings), at

    def _rings(self) -> None:
        self._timer, self._at = None, inf
        self._ring()
