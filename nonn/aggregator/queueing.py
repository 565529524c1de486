"""Queue of requests that wait to share a fan-out, and its timer.

Callers share the fan-outs fairly: batches are filled by deficit round robin (Shreedhar and Varghese 1995), in samples,
so a caller with large or many requests delays the others by no more than its share. A request that is larger than a
batch is sent in pieces. If the queue is full, the caller with the most waiting samples loses its newest request
(longest queue drop).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from math import inf

from nonn.answer import Answer
from nonn.errors import OverloadError
from nonn.rpc.wire import Array

__all__ = ["Alarm", "BatchMember", "Piece", "Queue"]


@dataclass(eq=False, slots=True)
class BatchMember:
    """One client's request.

    Attributes:
        batch: inputs [B, …].
        arrived_at: time of arrival.
        deadline_at: deadline of the client.
        answer: set when it is answered.
        context: continues its trace.
        caller: identifies the client for fair sharing of fan-outs, such as its connection.
        num_sent: number of samples that were taken from the queue.
        parts: first row and answer of each piece that was answered, if it is sent in pieces.
        held: number of samples that count as waiting or under way.
    """

    batch: Array
    arrived_at: float
    deadline_at: float
    answer: asyncio.Future[Answer]
    context: Context
    caller: str = ""
    num_sent: int = 0
    parts: list[tuple[int, Answer]] = field(default_factory=list)
    held: int = 0

    @property
    def num_left(self) -> int:
        """Number of samples that wait."""
        return len(self.batch) - self.num_sent


@dataclass(eq=False, slots=True)
class Piece:
    """Consecutive samples of a request that are sent in one fan-out."""

    member: BatchMember
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def whole(self) -> bool:
        """Whether it is the whole request."""
        return len(self) == len(self.member.batch)

    @property
    def batch(self) -> Array:
        """Its inputs."""
        return self.member.batch if self.whole else self.member.batch[self.start : self.stop]


class Queue:
    """Requests that wait: a line for each caller, in the order of arrival.

    Attributes:
        num_samples: number of samples of all of them.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[BatchMember]] = {}  # in the order in which callers have their turn
        self._credit: dict[str, int] = {}  # samples that a caller may send now
        self.num_samples = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def oldest_at(self) -> float:
        """Arrival time of the first request."""
        return min(line[0].arrived_at for line in self._lines.values())

    def push(self, member: BatchMember) -> None:
        """Adds one."""
        if member.caller not in self._lines:
            self._lines[member.caller], self._credit[member.caller] = deque(), 0
        self._lines[member.caller].append(member)
        self.num_samples += member.num_left

    def pop(self, limit: int, now: float) -> list[Piece]:
        """Takes the next requests and pieces that can share a fan-out: one dtype, at most ``limit`` samples.

        Requests whose client has given up are dropped; those whose deadline has passed are refused.
        """
        taken, room, moving = list[Piece](), limit, True
        while room and moving and self._lines:
            quantum, moving = max(1, limit // len(self._lines)), False
            for caller in tuple(self._lines):
                line = self._lines[caller]
                credit = min(limit, self._credit[caller] + quantum)
                while self._drop_head(line, now):
                    size = self._fits(line[0], limit, credit, room, taken)
                    if size == 0:
                        # With more credit in the next round it may fit.
                        whole = not self._divisible(line[0], limit)
                        moving = moving or (whole and credit < line[0].num_left <= room)
                        break
                    taken.append(self._take(line, size))
                    room, credit, moving = room - size, credit - size, True
                del self._lines[caller]
                if line:
                    self._lines[caller] = line  # at the end: others are next
                    # What the next request needs is kept, if it cannot be cut: more would be taken from others later.
                    self._credit[caller] = 0 if self._divisible(line[0], limit) else min(credit, line[0].num_left)
                else:
                    del self._credit[caller]
                if not room:
                    break
        return taken

    def push_out(self, caller: str, num_samples: int) -> BatchMember | None:
        """Removes the newest request of the caller with the most waiting samples; returns it, or None.

        Args:
            caller: whose request needs room.
            num_samples: number of its samples; a caller that would then wait with more than any other removes none.
        """
        waiting = {name: sum(member.num_left for member in line) for name, line in self._lines.items()}
        largest = max(waiting, key=waiting.__getitem__, default=caller)
        if waiting.get(largest, 0) <= waiting.get(caller, 0) + num_samples:
            return None
        member = self._lines[largest].pop()
        if not self._lines[largest]:
            del self._lines[largest], self._credit[largest]
        self.num_samples -= member.num_left
        return member

    def _drop_head(self, line: deque[BatchMember], now: float) -> bool:
        """Drops requests that need no answer any more; returns whether one is left."""
        while line:
            member = line[0]
            if not member.answer.done():
                if member.deadline_at > now:
                    return True
                waited_s = now - member.arrived_at
                member.answer.set_exception(OverloadError(f"waited {waited_s:.2f} s, until the client's deadline"))
            self.num_samples -= member.num_left
            line.popleft()
        return False

    def _take(self, line: deque[BatchMember], size: int) -> Piece:
        """Takes so many samples of the first request in a line."""
        member = line[0]
        piece = Piece(member, member.num_sent, member.num_sent + size)
        member.num_sent += size
        self.num_samples -= size
        if not member.num_left:
            line.popleft()
        return piece

    @staticmethod
    def _divisible(member: BatchMember, limit: int) -> bool:
        """Whether a request is sent in pieces."""
        return member.num_sent > 0 or member.num_left > limit

    @staticmethod
    def _fits(member: BatchMember, limit: int, credit: int, room: int, taken: list[Piece]) -> int:
        """How many samples of a request can join the batch now."""
        if taken and member.batch.dtype != taken[0].member.batch.dtype:
            return 0
        left = member.num_left
        if Queue._divisible(member, limit):
            return min(left, credit, room)
        return left if left <= min(credit, room) else 0


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
