"""Queue of requests that wait to share a fan-out, and its timer.

Callers share the fan-outs fairly: batches are filled by deficit round robin (Shreedhar and Varghese 1995), in samples,
so a caller with large or many requests delays the others by no more than its share. The connections of a caller divide
that share by start-time fair queueing (Goyal et al. 1996), in samples: more connections give no larger share, and
programs on one machine do not block each other. A request that is larger than a batch is sent in pieces. If the queue
is full, the caller with the most waiting samples loses the newest request of its connection with the most (longest
queue drop).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
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
        caller: identifies the client for fair sharing of fan-outs: its certificate or network address.
        connection: of the caller, which shares with its others what the caller may send.
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
    connection: str = ""
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


class _Line:
    """Requests of one caller that wait, which its connections send in turn.

    Each connection has a tag, which grows with the samples that it sends; the smallest tag is next. A connection that
    begins to wait starts with the tag of the one that was served last.

    Attributes:
        credit: samples that the caller may send now.
        waiting: requests of each connection, in the order of arrival.
    """

    def __init__(self) -> None:
        self.credit = 0
        self.waiting: dict[str, deque[BatchMember]] = {}
        self._turns: list[tuple[int, int, str]] = []  # a heap: tag, order of arrival, connection
        self._postponed: list[tuple[int, int, str]] = []
        self._served, self._number = 0, count()

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def push(self, member: BatchMember) -> None:
        """Adds one."""
        if member.connection not in self.waiting:
            self.waiting[member.connection] = deque()
            heappush(self._turns, (self._served, next(self._number), member.connection))
        self.waiting[member.connection].append(member)

    def head(self) -> BatchMember | None:
        """The next request; None if all connections are postponed, or there is none."""
        return self.waiting[self._turns[0][2]][0] if self._turns else None

    def postpone(self) -> None:
        """Passes over the connection that is next, until ``resume``."""
        self._postponed.append(heappop(self._turns))

    def resume(self) -> None:
        """Connections that were passed over have their turn."""
        while self._postponed:
            heappush(self._turns, self._postponed.pop())

    def advance(self, num_samples: int, *, done: bool) -> None:
        """So many samples of the next request were sent; ``done`` if none of it is left to send."""
        tag, _, connection = self._turns[0]
        self._served = max(self._served, tag)
        if done:
            self.waiting[connection].popleft()
        if self.waiting[connection]:
            heapreplace(self._turns, (tag + num_samples, next(self._number), connection))
        else:
            heappop(self._turns)
            del self.waiting[connection]

    def drop_newest(self, connection: str) -> BatchMember:
        """Removes the newest request of a connection."""
        member = self.waiting[connection].pop()
        if not self.waiting[connection]:
            del self.waiting[connection]
            self._turns = [turn for turn in self._turns if turn[2] != connection]
            heapify(self._turns)
        return member


class _Batch:
    """What one fan-out will send.

    Attributes:
        limit: most samples.
        pieces: taken so far.
        room: samples that it can still take.
    """

    def __init__(self, limit: int) -> None:
        self.limit = self.room = limit
        self.pieces: list[Piece] = []

    def add(self, piece: Piece) -> None:
        """Takes one."""
        self.pieces.append(piece)
        self.room -= len(piece)

    def accepts(self, member: BatchMember) -> bool:
        """Whether a request has its dtype."""
        return not self.pieces or member.batch.dtype == self.pieces[0].member.batch.dtype

    def divides(self, member: BatchMember) -> bool:
        """Whether a request is sent in pieces."""
        return member.num_sent > 0 or member.num_left > self.limit

    def fits(self, member: BatchMember, credit: int) -> int:
        """How many samples of a request it can take now."""
        left, most = member.num_left, min(credit, self.room)
        if self.divides(member):
            return min(left, most)
        return left if left <= most else 0


class Queue:
    """Requests that wait: a line for each caller.

    Attributes:
        num_samples: number of samples of all of them.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}  # in the order in which callers have their turn
        self.num_samples = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def oldest_at(self) -> float:
        """Arrival time of the first request."""
        return min(requests[0].arrived_at for line in self._lines.values() for requests in line.waiting.values())

    def push(self, member: BatchMember) -> None:
        """Adds one."""
        self._lines.setdefault(member.caller, _Line()).push(member)
        self.num_samples += member.num_left

    def pop(self, limit: int, now: float) -> list[Piece]:
        """Takes the next requests and pieces that can share a fan-out: one dtype, at most ``limit`` samples.

        Requests whose client has given up are dropped; those whose deadline has passed are refused.
        """
        batch, moving = _Batch(limit), True
        while moving and batch.room and self._lines:
            quantum, moving = max(1, limit // len(self._lines)), False
            for caller in tuple(self._lines):
                if batch.room:
                    moving = self._serve(caller, quantum, batch, now) or moving
        return batch.pieces

    def push_out(self, caller: str, num_samples: int, connection: str = "") -> BatchMember | None:
        """Removes the newest request of the caller with the most waiting samples, or of the same caller; returns it.

        Args:
            caller: whose request needs room.
            num_samples: number of its samples; a caller that would then wait with more than any other removes one of
                its own, unless its connection would wait with more than any other of its connections: then None.
            connection: of the request.
        """
        waiting = {name: sum(map(_num_left, line.waiting.values())) for name, line in self._lines.items()}
        largest = max(waiting, key=waiting.__getitem__, default=caller)
        own = waiting.get(largest, 0) <= waiting.get(caller, 0) + num_samples
        line = self._lines.get(caller if own else largest, _Line())
        of_line = {name: _num_left(requests) for name, requests in line.waiting.items()}
        longest = max(of_line, key=of_line.__getitem__, default=connection)
        if own and of_line.get(longest, 0) <= of_line.get(connection, 0) + num_samples:
            return None
        member = line.drop_newest(longest)
        if not line:
            del self._lines[member.caller]
        self.num_samples -= member.num_left
        return member

    def _serve(self, caller: str, quantum: int, batch: _Batch, now: float) -> bool:
        """One turn of a caller, which gets ``quantum`` more credit; whether a further round may take more."""
        line, moved, blocked = self._lines.pop(caller), False, None
        credit, alone = min(batch.limit, line.credit + quantum), not self._lines
        while batch.room and (member := self._head(line, now, batch)) is not None:
            if size := batch.fits(member, credit):
                batch.add(self._take(line, member, size))
                credit, moved = credit - size, True
            elif alone:
                line.postpone()  # it is the first of the next batch
            else:
                blocked, whole = member, not batch.divides(member)
                moved = moved or (whole and credit < member.num_left <= batch.room)  # with more credit it may fit
                break
        line.resume()
        if (first := line.head()) is not None:
            self._lines[caller] = line  # at the end: others are next
            # What the next request needs is kept, if it cannot be cut: more would be taken from others later. One that
            # is blocked is the next, although an earlier one with another dtype is the first.
            following = blocked or first
            line.credit = 0 if batch.divides(following) else min(credit, following.num_left)
        return moved

    def _head(self, line: _Line, now: float, batch: _Batch) -> BatchMember | None:
        """The next request of a line with the dtype of the batch; drops those that need no answer any more."""
        while (member := line.head()) is not None:
            if not member.answer.done():
                if member.deadline_at > now:
                    if batch.accepts(member):
                        return member
                    line.postpone()
                    continue
                waited_s = now - member.arrived_at
                member.answer.set_exception(OverloadError(f"waited {waited_s:.2f} s, until the client's deadline"))
            self.num_samples -= member.num_left
            line.advance(0, done=True)
        return None

    def _take(self, line: _Line, member: BatchMember, size: int) -> Piece:
        """Takes so many samples of the next request in a line."""
        piece = Piece(member, member.num_sent, member.num_sent + size)
        member.num_sent += size
        self.num_samples -= size
        line.advance(size, done=not member.num_left)
        return piece


def _num_left(requests: Iterable[BatchMember]) -> int:
    """Samples of some requests that wait."""
    return sum(member.num_left for member in requests)


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
