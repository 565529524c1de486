"""The aggregator itself: plan, ask, record, fuse.

A request costs what its slowest asked node costs, and at most the deadline. One failing node never fails a request:
what arrived is fused with the head of exactly that set, and the answer states the set and its accuracy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from nonn.aggregator.fanout import Fanout, Reply
from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.errors import QuorumError
from nonn.subsets import mask_of
from nonn.wire import Array, check_batch

__all__ = ["Aggregator"]

_log = logging.getLogger(__name__)


class Aggregator:
    """Fuses the answers of a cluster; an asynchronous context manager.

    Args:
        bundle: that all nodes run.
        nodes: the inventory.
        config: of the policy.
        clock: seconds that never go back.

    Raises:
        ConfigError: the quorum is larger than the number of nodes.
    """

    def __init__(
        self,
        bundle: Bundle,
        nodes: Sequence[Node],
        config: PolicyConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundle, self.nodes = bundle, tuple(nodes)
        self.policy = Policy((node.id for node in nodes), config or PolicyConfig())
        self._fanout = Fanout(nodes, bundle, clock)
        self._clock = clock
        self._accuracy = bundle.table.accuracy
        self._shape = bundle.manifest.input.shape
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # A ridge head is solved at first use, tens of milliseconds for wide features: not in somebody's request.
        everyone = mask_of(node.student for node in nodes)
        for mask in {everyone, *(everyone & ~(1 << node.student) for node in nodes)} - {0}:
            bundle.head.weights(mask)

    async def __aenter__(self) -> Self:
        await self._fanout.__aenter__()
        # One probe of every node opens the channels and finds those that are not there or of another bundle.
        await asyncio.gather(*(self._probe(node.id) for node in self.nodes))
        self._start(self._keep_probing())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._fanout.__aexit__(kind, exc, trace)

    @property
    def ready(self) -> bool:
        """Whether a request would reach its quorum, as far as is known."""
        return self.policy.ready

    async def readiness(self) -> AsyncIterator[bool]:
        """``ready`` now and again at every change."""
        while True:
            ready = self.ready
            yield ready
            async with self._changed:
                while self.ready is ready:
                    await self._changed.wait()

    async def infer(self, inputs: Array, remaining_s: float | None = None) -> Answer:
        """Answers one batch from whatever devices answer.

        Args:
            inputs: raw values [B, …], uint8 or float32.
            remaining_s: time until the client's deadline; None if it has none.

        Raises:
            InputError: the batch is not what the bundle takes.
            QuorumError: fewer devices answered than the quorum; the message names those missing and why.
        """
        start = self._clock()
        batch = check_batch({"input": inputs}, self._shape)
        plan = self.policy.plan(remaining_s)
        replies = await self._fanout.ask(plan.ask, batch, plan.deadline_s)
        await self._record(replies)
        features = {r.node.student: r.features for r in replies if r.features is not None}
        failures = self._failures(replies)
        if len(features) < self.policy.config.quorum:
            missing = "; ".join(f"{node} ({reason})" for node, reason in failures.items())
            raise QuorumError(
                f"{len(features)} of {len(self.nodes)} nodes answered, the quorum is {self.policy.config.quorum}; "
                f"missing: {missing}"
            )
        mask = mask_of(features)
        logits = self.bundle.head.logits(features)
        answered = np.zeros(self.bundle.num_devices, np.bool_)
        answered[list(features)] = True
        return Answer(
            logits=logits.astype(np.float32),
            confidence=self.bundle.head.probabilities(logits, mask).max(axis=1).astype(np.float32),
            answered=answered,
            degraded=not answered.all(),
            bundle=self.bundle.hash,
            expected_accuracy=float(self._accuracy[mask]),
            failures=failures,
            latency_s=self._clock() - start,
        )

    def _failures(self, replies: Iterable[Reply]) -> dict[str, str]:
        """Why each missing node is missing, in the order of the inventory."""
        asked = {reply.node.id: reply for reply in replies}
        reasons = {}
        for node in self.nodes:
            if node.id not in asked:
                reasons[node.id] = f"left out after {self.policy.nodes[node.id].failures} failures in a row"
            elif asked[node.id].error:
                reasons[node.id] = asked[node.id].error
        return reasons

    async def _record(self, replies: Iterable[Reply], *, probe: bool = False) -> None:
        """Tells the policy, and whoever waits for a change of readiness."""
        was_ready, now = self.ready, self._clock()
        for reply in replies:
            before = self.policy.state(reply.node.id)
            self.policy.record(
                reply.node.id, not reply.error, reply.latency_s, now, timed_out=reply.timed_out, probe=probe
            )
            after = self.policy.state(reply.node.id)
            if after != before:
                _log.info("node %s: %s → %s %s", reply.node.id, before, after, reply.error)
                self._wake.set()
        if self.ready is not was_ready:
            async with self._changed:
                self._changed.notify_all()

    async def _probe(self, node_id: str) -> None:
        """Asks one node for an answer that nobody waits for: a sample of zeros, checked like any other."""
        zeros = np.zeros((1, *self._shape), np.uint8)
        # Waiting for the channel, so that a node that has just come up is found before the next probe.
        replies = await self._fanout.ask([node_id], zeros, self.policy.config.deadline_s, wait_for_ready=True)
        await self._record(replies, probe=True)
        self._wake.set()

    async def _keep_probing(self) -> None:
        """Probes nodes that failed whenever the policy says so; sleeps while there are none."""
        while True:
            for node in self.policy.probes(self._clock()):
                self._start(self._probe(node))
            self._wake.clear()
            # Not wait_for: in Python 3.11 it swallows a cancellation that meets the event, and close() would hang.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.policy.next_probe_s(self._clock())):
                    await self._wake.wait()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs something in the background until it ends or the aggregator closes."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
