"""Dynamic batching: requests that arrive while others are under way travel together.

A lone request is sent at once. What arrives before it is answered waits and goes as one batch: eight calls then serve
many clients, which is what answers cost. Nobody loses by it:

- Each client gets its own rows, and the deadline of the tightest never shortens the others' wait for good: where it cut
  a shared wait short, those that have time left are asked about again.
- If the nodes refuse a shared batch, one client's values may be to blame: each is then asked about alone.
- A fan-out that takes longer than twice the usual time, since some node hangs, holds nobody up: the next one starts.
- Clients that travelled together ask again soon after they were answered, but not at once. The next batch waits until
  as many samples are there as travelled or waited when the last one came back, for as long as a fan-out usually takes
  and ``company_s`` at most. Requests trickle in one by one: without this many clients would go a few at a time.
- Batches grow only as long as the nodes are quick: a batch that takes longer than a quarter of the deadline halves the
  limit, a full one that does not doubles it, up to ``max_batch`` (Crankshaw et al. 2017, "Clipper", in larger steps).

The queue is bounded. A request too many is refused at once: an answer after the client has left helps nobody.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np

from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.latencies import Latencies
from nonn.answer import Answer, ReplyStatus
from nonn.errors import ConfigError, InputError, OverloadError, QuorumError
from nonn.rpc.wire import MAX_SAMPLES, Array

__all__ = ["BatchConfig", "Batcher", "Infer"]

MIN_PATIENCE_S = 0.02  # below this a fan-out is not late but interrupted
CUT_SHARE = 0.9  # a fan-out that took this much of its deadline was ended by it


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What the operator decides.

    Attributes:
        max_batch: samples of several requests that travel together; 1 switches batching off.
        max_delay_s: how long a request may wait for others although nothing is under way.
        company_s: how long clients that travelled together are waited for at most; 0 is not at all.
        max_queue: samples that may be waiting or under way.
        max_samples: samples of one request; the nodes' ``--max-batch`` must allow as many.
    """

    max_batch: int = 64
    max_delay_s: float = 0.0
    company_s: float = 0.01
    max_queue: int = 4096
    max_samples: int = MAX_SAMPLES

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("max_delay_s", "company_s"):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be a number of seconds, 0 or more")
        if self.max_queue < self.max_samples:
            raise ConfigError(
                f"max_queue = {self.max_queue}: less than max_samples = {self.max_samples}, so that the largest "
                "request could never be answered"
            )


class Infer(Protocol):
    """Answers a checked batch, as ``Aggregator.infer_checked`` does."""

    async def __call__(self, batch: Array, remaining_s: float | None, *, num_requests: int) -> Answer:
        """Answers it for so many requests at once."""
        ...


@dataclass(eq=False, slots=True)
class _Member:
    """One client's request."""

    batch: Array
    arrived_at: float
    deadline_at: float
    answer: asyncio.Future[Answer]
    context: Context  # that its trace goes on in


class Batcher:
    """Puts requests together and takes answers apart.

    Args:
        infer: answers a batch.
        config: the limits.
        policy: how long a fan-out may take.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        infer: Infer,
        config: BatchConfig,
        policy: PolicyConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._infer, self._policy, self._clock = infer, policy, clock
        self._queue: deque[_Member] = deque()
        self._held = 0  # samples that wait or are under way
        self._holder: object | None = None  # the fan-out that holds up the next one
        self._overdue_at = 0.0  # when it will no longer, on the event loop's clock
        self._limit = 1
        self._queued = 0  # samples in the queue
        self._company = 0  # samples that are worth waiting for
        self._company_until = -inf  # until when, on the event loop's clock
        self._long_s = policy.deadline_s / 4
        self._usual = Latencies()
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def held(self) -> int:
        """Samples that wait or are under way."""
        return self._held

    async def infer(self, batch: Array, remaining_s: float | None = None) -> Answer:
        """Answers one request, in company if others wait.

        Args:
            batch: checked inputs [B, …], B at most ``max_samples``.
            remaining_s: time until the client's deadline; None if it has none.

        Raises:
            OverloadError: the queue is full.
            NonnError: as ``infer`` raises it.
        """
        if self._held + len(batch) > self.config.max_queue:
            raise OverloadError(
                f"{self._held} samples are waiting for an answer, and {self.config.max_queue} may (--max-queue); "
                "ask again later, or with fewer requests at once"
            )
        self._held += len(batch)
        try:
            if self.config.max_batch == 1:
                return await self._infer(batch, remaining_s, num_requests=1)
            if self._holder is None and not self._queue and not self._worth_waiting(len(batch)):
                return await self._alone(batch, remaining_s)
            now = self._clock()
            deadline_at = inf if remaining_s is None else now + remaining_s
            member = _Member(batch, now, deadline_at, asyncio.get_running_loop().create_future(), copy_context())
            self._queue.append(member)
            self._queued += len(batch)
            self._start_waiting()
            return await member.answer
        finally:
            self._held -= len(batch)

    def _worth_waiting(self, num_samples: int) -> bool:
        """Whether a request that meets nobody should wait for others."""
        if self.config.max_delay_s:
            return True
        return num_samples < self._company and asyncio.get_running_loop().time() < self._company_until

    async def _alone(self, batch: Array, remaining_s: float | None) -> Answer:
        """Answers a request that meets nobody."""
        token, start, answer = self._hold(), self._clock(), None
        try:
            answer = await self._infer(batch, remaining_s, num_requests=1)
            return answer
        finally:
            self._adapt(len(batch), self._clock() - start, _hung(answer))
            self._let_go(token, len(batch), 1)

    def _hold(self) -> object:
        """Begins a fan-out; what comes waits for it, for twice the usual time at most."""
        self._holder = token = object()
        usual_s = self._usual.quantile(0.5) or self._long_s
        self._overdue_at = asyncio.get_running_loop().time() + max(MIN_PATIENCE_S, 2 * usual_s)
        return token

    def _let_go(self, token: object, num_samples: int, num_requests: int) -> None:
        """Ends a fan-out; if it had company, those who had it are waited for, since they will soon ask again."""
        if self._holder is token:
            self._holder = None
            if num_requests > 1 or self._queue:
                self._company = num_samples + self._queued
                wait_s = min(self.config.company_s, self._usual.quantile(0.5) or 0.0)
                self._company_until = asyncio.get_running_loop().time() + wait_s
            self._start_waiting()

    def _start_waiting(self) -> None:
        """Sends as much of the queue as may go now, and looks again when more may."""
        loop = asyncio.get_running_loop()
        while self._queue:
            if self._holder is not None:
                return self._look_at(self._overdue_at)
            now = self._clock()
            go_at = loop.time() + self._queue[0].arrived_at + self.config.max_delay_s - now
            if self._queued < self._company:
                go_at = max(go_at, self._company_until)
            if go_at > loop.time() and self._queued < self._limit:
                return self._look_at(go_at)
            if members := self._next(now):
                # Held here and not when the task first runs, or the loop would empty the queue one by one.
                task = asyncio.create_task(self._fly(members, self._hold()), context=members[0].context)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return None

    def _look_at(self, when: float) -> None:
        """Looks at the queue at a time of the event loop, or before."""
        if self._timer is None or when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = asyncio.get_running_loop().call_at(when, self._look), when

    def _look(self) -> None:
        """The time to look has come; or nearly, since uvloop rounds to milliseconds: then there is another look."""
        self._timer = None
        if self._holder is not None and asyncio.get_running_loop().time() >= self._overdue_at:
            self._holder = None
        self._start_waiting()

    def _next(self, now: float) -> list[_Member]:
        """The next requests that can travel together, in the order of arrival; those given up are dropped."""
        members, total = list[_Member](), 0
        while self._queue:
            member = self._queue[0]
            if not member.answer.done():
                if member.deadline_at <= now:
                    waited_s = now - member.arrived_at
                    member.answer.set_exception(OverloadError(f"waited {waited_s:.2f} s, as long as the client would"))
                elif members and (
                    total + len(member.batch) > self._limit or member.batch.dtype != members[0].batch.dtype
                ):
                    break
                else:
                    members.append(member)
                    total += len(member.batch)
            self._queue.popleft()
            self._queued -= len(member.batch)
        return members

    async def _fly(self, members: Sequence[_Member], token: object) -> None:
        """One fan-out for some requests; every one of them has its answer or error afterwards."""
        again: Sequence[_Member] = ()
        try:
            again = await self._ask(members)
        except asyncio.CancelledError:
            for member in members:
                member.answer.cancel()
            raise
        except Exception as exc:  # whatever it is, nobody may wait for ever
            for member in members:
                if not member.answer.done():
                    member.answer.set_exception(exc)
        finally:
            self._let_go(token, sum(len(member.batch) for member in members), len(members))
        if again:
            await self._fly(again, self._hold())

    async def _ask(self, members: Sequence[_Member]) -> Sequence[_Member]:
        """Asks once and gives each its answer; returns those whose wait was cut short by another's deadline."""
        start = self._clock()
        tightest = min(member.deadline_at for member in members)
        remaining_s = None if tightest == inf else tightest - start
        batch = members[0].batch if len(members) == 1 else np.concatenate([member.batch for member in members])
        answer, error = None, None
        try:
            answer = await self._infer(batch, remaining_s, num_requests=len(members))
        except Exception as exc:
            error = exc
        took_s = self._clock() - start
        self._adapt(len(batch), took_s, _hung(answer))
        if len(members) > 1 and _refused(answer, error):
            await asyncio.gather(*(self._ask([member]) for member in members))
            return ()
        hurried = tightest - start < self._policy.deadline_s
        wait_s = tightest - start - self._policy.fusion_budget_s
        cut = hurried and took_s >= CUT_SHARE * wait_s and _incomplete(answer, error)
        again, row = [], 0
        for member in members:
            if member.answer.done():  # the client has given up
                pass
            elif cut and member.deadline_at > tightest:
                again.append(member)
            elif answer is None:
                assert error is not None
                member.answer.set_exception(error)
            else:
                rows = slice(row, row + len(member.batch))
                member.answer.set_result(self._share(answer, rows, member))
            row += len(member.batch)
        return again

    def _share(self, answer: Answer, rows: slice, member: _Member) -> Answer:
        """One client's part of an answer."""
        latency_s = self._clock() - member.arrived_at
        return dataclasses.replace(
            answer, logits=answer.logits[rows], confidence=answer.confidence[rows], latency_s=latency_s
        )

    def _adapt(self, num_samples: int, took_s: float, hung: bool) -> None:
        """Learns from one fan-out how long one takes and how large it may be."""
        # The median: a node that hangs holds up a dozen fan-outs, and the next one that does would hold up the queue.
        self._usual.add(took_s)
        if hung:
            return  # it says how long a node was silent, not what a batch costs
        if took_s > self._long_s:
            if num_samples > 1:  # a single one cannot be smaller
                self._limit = max(1, min(self._limit, num_samples) // 2)
        elif num_samples >= self._limit:
            self._limit = min(self.config.max_batch, 2 * self._limit)


def _hung(answer: Answer | None) -> bool:
    """Whether an answer came late because a node was silent."""
    statuses = answer.statuses.values() if answer else ()
    return ReplyStatus.SILENT in statuses or ReplyStatus.NOT_AWAITED in statuses


def _refused(answer: Answer | None, error: Exception | None) -> bool:
    """Whether a node said that the batch was bad; a nonn node says so of values that its student cannot take."""
    return isinstance(error, InputError) or (answer is not None and ReplyStatus.REFUSED in answer.statuses.values())


def _incomplete(answer: Answer | None, error: Exception | None) -> bool:
    """Whether more time could have made a better answer."""
    return isinstance(error, QuorumError) if answer is None else answer.degraded
