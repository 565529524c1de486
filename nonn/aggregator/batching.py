"""Dynamic batching across clients: requests that arrive while a fan-out is under way are sent as one batch.

A lone request is sent at once. Requests that arrive before its answer wait and share the next fan-out: eight calls
then serve many clients, and the calls are most of an answer's cost. No client is worse off:

- Each client gets its own rows. The batch is sent with the tightest deadline; clients with more time whose wait was
  cut short are sent again.
- A request that is larger than a batch is sent in pieces, between the requests of other callers; all share the batches
  fairly (``nonn.aggregator.queueing``). Its answer is fused from the devices that answered all pieces.
- If nodes refuse a shared batch, one client's values may be to blame: each request is then sent alone. A node that
  accepts all of them alone has failed. At most a fifth of the time goes into this while the answers lose little without
  the nodes that refuse.
- The rules of ``nonn.aggregator.pacing``: an overdue fan-out blocks no other one, a batch waits briefly for the clients
  of the last one, and batches grow only while the nodes are quick.

The queue is bounded. When it is full, the newest request of the caller with the most waiting samples is refused at
once: an answer after the client has left is of no use.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import itemgetter
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.fanout import OnPrompt
from nonn.aggregator.pacing import BatchLimit, FanoutSlot, Regrouping
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.latencies import Latencies
from nonn.aggregator.queueing import Alarm, BatchMember, Piece, Queue
from nonn.answer import Answer, ReplyStatus
from nonn.errors import InputError, OverloadError, QuorumError
from nonn.rpc.wire import MAX_MESSAGE_BYTES, MAX_SAMPLES, Array
from nonn.telemetry.background import Background
from nonn.toml import check
from nonn.toml.constraints import Count, NotNegative, Rules

__all__ = ["BatchConfig", "Batcher", "Infer"]

PLENTY = 4  # a node that is worth little makes batches no smaller than this fraction of the largest
SPLIT_REST = 4  # times as long as the requests of a refused batch took alone, the next such batch is not sent again
CUT_SHARE = 0.9  # a fan-out that took this share of its deadline was ended by it


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Limits of batching, set by the operator.

    Raises:
        ConfigError: a value is invalid; the message names it.
    """

    max_batch: Annotated[
        Count,
        "most samples of several clients in one fan-out; 1 switches batching off, and then no request is sent in "
        "pieces",
    ] = 64
    max_delay_s: Annotated[NotNegative, "how long a request to an idle cluster waits for others"] = 0.0
    regroup_s: Annotated[
        NotNegative, "how long a batch waits at most for the clients of the last one to ask again; 0 does not wait"
    ] = 0.01
    max_queue: Annotated[Count, "most samples that may be waiting or under way"] = 4096
    max_samples: Annotated[Count, "most samples of one request"] = MAX_SAMPLES
    max_request_bytes: Annotated[
        Count, "most bytes of one request, if max_samples samples have more; one sample is always possible"
    ] = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        check(self)

    def rules(self) -> Rules:
        """Checks of several fields."""
        yield (
            "max_queue",
            self.max_queue >= self.max_samples,
            f"less than max_samples = {self.max_samples}, so the largest request could never be answered",
        )


class Infer(Protocol):
    """Answers a checked batch, as ``Aggregator.infer_checked`` does."""

    async def __call__(
        self, batch: Array, remaining_s: float | None, *, num_requests: int, on_prompt: OnPrompt
    ) -> Answer:
        """Answers the batch of ``num_requests`` requests; ``on_prompt`` is called if only stragglers are missing."""
        ...


@dataclass(eq=False, slots=True)
class _Turn:
    """The turn of one fan-out; while it holds the slot, the next one waits.

    Attributes:
        token: of the slot.
        num_samples: number of samples.
        num_requests: number of requests.
        prompt_s: time that all nodes but stragglers took; None while others are missing.
    """

    token: object
    num_samples: int
    num_requests: int
    prompt_s: float | None = None


class Batcher:
    """Joins requests into batches and splits the answers.

    Args:
        infer: answers a batch.
        config: the limits.
        policy: its deadline limits a fan-out.
        clock: monotonic time in seconds.
        join: makes one answer from those to consecutive parts of a request, as ``Aggregator.join`` does.
        sample_s: time that a node takes for each further sample, as of ``Policy.sample_s``.
        accepted: most samples of one request that the nodes accept, as of ``Policy.max_batch``.
        refused: called with the nodes that refused a batch and accept its requests alone, and its number of samples.
        cheap: whether an answer loses little without the nodes that refused its batch.
    """

    def __init__(
        self,
        infer: Infer,
        config: BatchConfig,
        policy: PolicyConfig,
        clock: Callable[[], float] = time.monotonic,
        *,
        join: Callable[[Sequence[Answer]], Awaitable[Answer]],
        sample_s: Callable[[float], float] = lambda tolerable_s: 0.0,
        accepted: Callable[[float], float] = lambda least: inf,
        refused: Callable[[Collection[str], int], None] = lambda nodes, num_samples: None,
        cheap: Callable[[Answer], bool] = lambda answer: False,
    ) -> None:
        self.config, self._accepted, self._refused, self._cheap = config, accepted, refused, cheap
        self._split_at = -inf  # when a batch may be sent again that some nodes refuse and others answer
        self._join, self._sample_s = join, sample_s
        self._infer, self._policy, self._clock = infer, policy, clock
        self._held = 0  # samples that wait or are under way
        self._queue, self._alarm = Queue(), Alarm(self._send_waiting)
        self._long_s = policy.deadline_s / 4
        self._slot, self._regrouping = FanoutSlot(), Regrouping(config.regroup_s)
        self._limit = BatchLimit(config.max_batch, self._long_s)
        # Its median is used: a hung node delays a dozen fan-outs, which must not make the next ones wait longer.
        self._usual = Latencies()
        self._tasks = Background()

    async def close(self) -> None:
        """Cancels the requests under way."""
        await self._tasks.close()

    @property
    def held(self) -> int:
        """Samples that wait or are under way."""
        return self._held

    async def infer(
        self, batch: Array, remaining_s: float | None = None, caller: str = "", connection: str = ""
    ) -> Answer:
        """Answers one request, in a batch with others that wait, or in pieces if it is larger than a batch.

        Args:
            batch: checked inputs [B, …], B at most ``max_samples``.
            remaining_s: time until the client's deadline; None if it has none.
            caller: callers share the fan-outs fairly.
            connection: of the caller; its connections divide its share.

        Raises:
            OverloadError: the queue is full.
            NonnError: as ``infer`` raises it.
        """
        now = self._clock()
        deadline_at = inf if remaining_s is None else now + remaining_s
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        member = BatchMember(batch, now, deadline_at, answer, copy_context(), caller, connection)
        self._hold(member)
        try:
            if self.config.max_batch == 1:
                return await self._infer(batch, remaining_s, num_requests=1, on_prompt=lambda prompt_s: None)
            if self._may_go_alone(len(batch)):
                return await self._alone(batch, remaining_s)
            self._queue.push(member)
            self._send_waiting()
            return await answer
        finally:
            self._release(member)

    def _hold(self, member: BatchMember) -> None:
        """Counts a request as waiting; if the queue is full, the caller that waits with the most makes room."""
        num_samples = len(member.batch)
        while self._held + num_samples > self.config.max_queue:
            error = OverloadError(
                f"{self._held} samples are waiting for an answer, the limit is {self.config.max_queue} (--max-queue); "
                "try again later, or send fewer requests at once"
            )
            other = self._queue.push_out(member.caller, num_samples, member.connection)
            if other is None:
                raise error
            self._release(other)
            if not other.answer.done():
                other.answer.set_exception(error)
        member.held = num_samples
        self._held += num_samples

    def _release(self, member: BatchMember) -> None:
        """A request is answered, or refused."""
        self._held -= member.held
        member.held = 0

    @property
    def _batch_limit(self) -> int:
        """Samples of the next fan-out: the nodes accept them, and none that it waits for exceeds its patience."""
        patience_s, plenty = self._policy.patience_s, max(1, self.config.max_batch // PLENTY)
        size, sample_s = int(min(self._limit.size, self._accepted(plenty))), self._sample_s(patience_s / plenty)
        return size if sample_s * size <= patience_s else max(1, int(patience_s / sample_s))

    def _may_go_alone(self, num_samples: int) -> bool:
        """Whether a request is sent at once: no fan-out is under way, and no other request is expected."""
        if self._queue or self.config.max_delay_s or (num_samples > 1 and num_samples > self._batch_limit):
            return False
        now = asyncio.get_running_loop().time()
        return self._slot.free(now) and self._regrouping.wait_until(num_samples) <= now

    async def _alone(self, batch: Array, remaining_s: float | None) -> Answer:
        """Answers a request in a separate fan-out."""
        turn, start, answer = self._take_slot(len(batch), 1), self._clock(), None
        try:
            answer = await self._infer(batch, remaining_s, num_requests=1, on_prompt=partial(self._on_prompt, turn))
            return answer
        finally:
            self._learn(turn, len(batch), self._clock() - start, answer)
            self._release_slot(turn)

    def _take_slot(self, num_samples: int, num_requests: int) -> _Turn:
        """Begins a fan-out."""
        now, usual_s = asyncio.get_running_loop().time(), self._usual.quantile(0.5) or self._long_s
        return _Turn(self._slot.take(now, usual_s), num_samples, num_requests)

    def _on_prompt(self, turn: _Turn, prompt_s: float) -> None:
        """Only stragglers are missing from a fan-out: the other nodes are free for the next one."""
        if turn.prompt_s is None:
            turn.prompt_s = prompt_s
            self._usual.add(prompt_s)
            self._limit.on_fanout(turn.num_samples, prompt_s)
        self._release_slot(turn)

    def _release_slot(self, turn: _Turn) -> None:
        """Ends a fan-out, so that the next one may start."""
        if self._slot.release(turn.token):
            if turn.num_requests > 1 or self._queue:
                now, usual_s = asyncio.get_running_loop().time(), self._usual.quantile(0.5)
                self._regrouping.on_reply(turn.num_samples, self._queue.num_samples, now, usual_s)
            self._send_waiting()

    def _turn_of(self, pieces: Sequence[Piece]) -> _Turn:
        return self._take_slot(sum(map(len, pieces)), len(pieces))

    def _send_waiting(self) -> None:
        """Sends what the rules allow now, and sets the alarm to the time when they allow more."""
        loop = asyncio.get_running_loop()
        while self._queue:
            now = loop.time()
            if not self._slot.free(now):
                return self._alarm.set(self._slot.overdue_at)
            go_at, limit = self._regrouping.wait_until(self._queue.num_samples), self._batch_limit
            if self.config.max_delay_s:
                go_at = max(go_at, now + self.config.max_delay_s - (self._clock() - self._queue.oldest_at))
            if go_at > now and self._queue.num_samples < limit:
                return self._alarm.set(go_at)
            if pieces := self._queue.pop(limit, self._clock()):
                # The slot is taken here, not when the task first runs; otherwise this loop would empty the queue.
                task = self._fly(pieces, self._turn_of(pieces))
                self._tasks.start(task, "batch", context=pieces[0].member.context)
        return None

    async def _fly(self, pieces: Sequence[Piece], turn: _Turn) -> None:
        """One fan-out for some requests; afterwards each of them has its answer or error."""
        again: Sequence[Piece] = ()
        try:
            again = await self._ask(pieces, turn)
        except asyncio.CancelledError:
            for piece in pieces:
                piece.member.answer.cancel()
            raise
        except Exception as exc:  # any error ends the wait of every client
            for piece in pieces:
                if not piece.member.answer.done():
                    piece.member.answer.set_exception(exc)
        finally:
            self._release_slot(turn)
        if again:
            await self._fly(again, self._turn_of(again))

    async def _ask(self, pieces: Sequence[Piece], turn: _Turn, answers: list[Answer] | None = None) -> Sequence[Piece]:
        """Asks once and answers each request; returns those whose wait was cut short by another one's deadline.

        Args:
            pieces: what to ask.
            turn: turn of the fan-out.
            answers: gets the answer, if there is one.
        """
        start, tightest = self._clock(), min(piece.member.deadline_at for piece in pieces)
        batch = pieces[0].batch if len(pieces) == 1 else np.concatenate([piece.batch for piece in pieces])
        remaining_s = None if tightest == inf else tightest - start
        answer, error = None, None
        try:
            num_requests, on_prompt = sum(piece.start == 0 for piece in pieces), partial(self._on_prompt, turn)
            answer = await self._infer(batch, remaining_s, num_requests=num_requests, on_prompt=on_prompt)
        except Exception as exc:
            error = exc
        took_s = self._clock() - start
        self._learn(turn, len(batch), took_s, answer)
        if answer is not None and answers is not None:
            answers.append(answer)
        refusing = _refusing(answer)
        if len(pieces) > 1 and (isinstance(error, InputError) or (answer and self._may_split(answer, refusing))):
            await self._split(pieces, turn, refusing)
            return ()
        cut = self._was_cut(remaining_s, took_s) and _incomplete(answer, error)
        again, row = list[Piece](), 0
        for piece in pieces:
            rows = slice(row, row + len(piece))
            row = rows.stop
            if piece.member.answer.done():  # its client may have given up
                continue
            if cut and piece.member.deadline_at > tightest:
                again.append(piece)
            elif error is not None:
                piece.member.answer.set_exception(error)
            elif answer is not None:
                self._give(piece, answer, rows)
        return again

    def _may_split(self, answer: Answer, refusing: Sequence[str]) -> bool:
        """Whether the requests of a batch are sent again that some nodes refused and others answered."""
        return bool(refusing) and (self._clock() >= self._split_at or not self._cheap(answer))

    async def _split(self, pieces: Sequence[Piece], turn: _Turn, refusing: Sequence[str]) -> None:
        """Sends each request of a batch alone; reports the nodes that refused the batch and accept all of them."""
        start, answers = self._clock(), list[Answer]()
        self._split_at = inf
        try:
            await asyncio.gather(*(self._ask([piece], turn, answers) for piece in pieces))
        finally:
            now = self._clock()
            self._split_at = now + SPLIT_REST * (now - start)
        false = [node for node in refusing if not any(node in answer.statuses for answer in answers)]
        if false and len(answers) == len(pieces):
            self._refused(false, sum(map(len, pieces)))

    def _was_cut(self, remaining_s: float | None, took_s: float) -> bool:
        """Whether a client's deadline ended a fan-out, rather than the policy's."""
        if remaining_s is None or remaining_s >= self._policy.deadline_s:
            return False
        return took_s >= CUT_SHARE * (remaining_s - self._policy.fusion_budget_s)

    def _give(self, piece: Piece, answer: Answer, rows: slice) -> None:
        """Gives one client its part of an answer; a request in pieces waits for the last of them."""
        member, features = piece.member, dict[int, NDArray[np.float32]]()
        if not piece.whole:
            features = {device: values[rows] for device, values in answer.features.items()}
        logits, confidence = answer.logits[rows], answer.confidence[rows]
        latency_s = self._clock() - member.arrived_at
        part = dataclasses.replace(answer, logits=logits, confidence=confidence, features=features, latency_s=latency_s)
        if piece.whole:
            member.answer.set_result(part)
            return
        member.parts.append((piece.start, part))
        if sum(len(part.logits) for _, part in member.parts) == len(member.batch):
            self._tasks.start(self._put_together(member), "request in pieces", context=member.context)

    async def _put_together(self, member: BatchMember) -> None:
        """Answers a request from its parts."""
        try:
            answer = await self._join([part for _, part in sorted(member.parts, key=itemgetter(0))])
        except Exception as exc:
            if not member.answer.done():
                member.answer.set_exception(exc)
            return
        if not member.answer.done():
            member.answer.set_result(dataclasses.replace(answer, latency_s=self._clock() - member.arrived_at))

    def _learn(self, turn: _Turn, num_samples: int, took_s: float, answer: Answer | None) -> None:
        """Records how long a fan-out took, unless it was prompt: the delay of stragglers is not the batch's."""
        if turn.prompt_s is None:
            self._usual.add(took_s)
            if not _hung(answer):  # otherwise the time is that of a silent node
                self._limit.on_fanout(num_samples, took_s)


def _hung(answer: Answer | None) -> bool:
    """Whether an answer came late because a node was silent."""
    return answer is not None and ReplyStatus.SILENT in answer.statuses.values()


def _refusing(answer: Answer | None) -> list[str]:
    """Nodes that rejected the batch; a nonn node does so for values that its student does not accept."""
    return [node for node, status in (answer.statuses if answer else {}).items() if status is ReplyStatus.REFUSED]


def _incomplete(answer: Answer | None, error: Exception | None) -> bool:
    """Whether more time could have improved the answer."""
    return isinstance(error, QuorumError) if answer is None else answer.degraded
