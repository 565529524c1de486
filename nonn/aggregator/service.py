"""The aggregator itself: it asks nodes, learns from their replies, fuses them, and reports to its observers.

A request costs what its slowest asked node costs, and at most the deadline. One failing node never fails a request:
what arrived is fused with the head of exactly that set, and the answer states the set and its accuracy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.fanout import Connect, Fanout
from nonn.aggregator.inventory import Node
from nonn.aggregator.missing import missing_nodes, refusal
from nonn.aggregator.monitoring.events import LateEvent, Observer, Observers, Outcome, RequestEvent, StateEvent
from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.aggregator.policy.session import Session
from nonn.aggregator.reply import Reply
from nonn.aggregator.solver import HeadSolver
from nonn.answer import Answer, ReplyStatus
from nonn.bundle import Bundle
from nonn.errors import ConfigError, InputError
from nonn.reliability.subsets import mask_of
from nonn.rpc.background import Background
from nonn.rpc.wire import Array, check_batch
from nonn.telemetry.tracing import span

__all__ = ["Aggregator"]


@dataclass(frozen=True, slots=True)
class _Fanout:
    """One batch that nodes were asked about.

    Attributes:
        start: when it came.
        num_samples: B.
        num_requests: clients whose requests these samples are.
        session: that decided.
        replies: of every node that was asked.
    """

    start: float
    num_samples: int
    num_requests: int
    session: Session
    replies: tuple[Reply, ...]


class Aggregator:
    """Fuses the answers of a cluster; an asynchronous context manager.

    Args:
        bundle: that all nodes run.
        nodes: the inventory.
        config: of the policy.
        observers: called at every request, change of state and late reply.
        connect: makes the channel to a node; in plain text by default.
        clock: seconds that never go back.

    Raises:
        ConfigError: the quorum is larger than the number of devices.
    """

    def __init__(
        self,
        bundle: Bundle,
        nodes: Sequence[Node],
        config: PolicyConfig | None = None,
        *,
        observers: Sequence[Observer] = (),
        connect: Connect | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundle, self.nodes = bundle, tuple(nodes)
        self.observers = Observers(observers)
        config = config or PolicyConfig()
        if config.quorum > bundle.num_devices:
            raise ConfigError(f"quorum = {config.quorum}: the bundle has only {bundle.num_devices} devices")
        self.policy = Policy({node.id: node.student for node in nodes}, config, bundle.table.accuracy.tolist())
        self._fanout = Fanout(nodes, bundle, self._learn, connect, clock)
        self._head, self._solver = bundle.head, HeadSolver(bundle.head)
        self._clock = clock
        self._shape = bundle.manifest.input.shape
        self._waiting: set[asyncio.Event] = set()
        self._wake = asyncio.Event()
        self._tasks = Background()

    async def __aenter__(self) -> Self:
        await self._fanout.__aenter__()
        # One probe of every node opens the channels and finds those that are not there or of another bundle.
        await asyncio.gather(*(self._probe(node.id) for node in self.nodes))
        # The first request finds the head of all nodes solved; other sets follow in the background.
        await self._solver.ensure(mask_of(node.student for node in self.nodes))
        self._solver.look_ahead(node.student for node in self.nodes)
        self._tasks.start(self._keep_probing(), "probing of nodes that failed")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.close()
        await self._solver.close()
        await self._fanout.__aexit__(kind, exc, trace)

    async def add_node(self, node: Node) -> None:
        """Takes one more node into the running cluster; it is probed before this returns, and used from then on.

        Several nodes may run the same student: they are replicas.

        Raises:
            ConfigError: the id is taken, or the bundle has no such student.
        """
        if node.id in self.policy.nodes:
            raise ConfigError(f"node '{node.id}' is there already; remove it first, or give this one another id")
        if not 0 <= node.student < self.bundle.num_devices:
            raise ConfigError(
                f"node '{node.id}': student {node.student}; the bundle has 0 to {self.bundle.num_devices - 1}"
            )
        was_ready = self.ready
        self.nodes = (*self.nodes, node)
        self._fanout.add(node)
        self.policy.add(node.id, node.student)
        self.observers.on_state(StateEvent(self._clock(), node.id, "", "up", "joined"))
        self._changed(was_ready)
        await self._probe(node.id)

    async def remove_node(self, node_id: str, reason: str = "removed") -> None:
        """Takes a node out of the running cluster; what it was asked already may still be answered.

        Raises:
            ConfigError: there is no such node.
        """
        if node_id not in self.policy.nodes:
            raise ConfigError(f"there is no node '{node_id}'")
        was_ready, before = self.ready, self.policy.state(node_id)
        self.nodes = tuple(node for node in self.nodes if node.id != node_id)
        self.policy.remove(node_id)
        self.observers.on_state(StateEvent(self._clock(), node_id, before, "", reason))
        self._changed(was_ready)
        await self._fanout.remove(node_id, self.policy.config.deadline_s)

    async def reconnect(self) -> None:
        """Makes every channel anew, since credentials have changed; no request notices."""
        await self._fanout.reconnect(self.policy.config.deadline_s)

    @property
    def ready(self) -> bool:
        """Whether a request would reach its quorum, as far as is known."""
        return self.policy.ready

    async def readiness(self) -> AsyncIterator[bool]:
        """``ready`` now and again at every change."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while True:
                ready = self.ready
                yield ready
                while self.ready is ready:
                    changed.clear()
                    await changed.wait()
        finally:
            self._waiting.discard(changed)

    async def infer(self, inputs: Array, remaining_s: float | None = None) -> Answer:
        """Answers one batch from whatever devices answer.

        Args:
            inputs: raw values [B, …], uint8 or float32.
            remaining_s: time until the client's deadline; None if it has none.

        Raises:
            InputError: the batch is not what the bundle takes, or the nodes themselves say so.
            QuorumError: fewer devices answered than the quorum; the message names those missing and why.
        """
        start = self._clock()
        try:
            batch = check_batch({"input": inputs}, self._shape)
        except InputError:
            now = self._clock()
            self.observers.on_request(RequestEvent(now, 0, "invalid", latency_s=now - start))
            raise
        return await self.infer_checked(batch, remaining_s)

    async def infer_checked(self, batch: Array, remaining_s: float | None = None, *, num_requests: int = 1) -> Answer:
        """The same for a batch that has been checked, of several requests if so.

        Raises:
            InputError: the nodes themselves say that they cannot take it.
            QuorumError: fewer devices answered than the quorum; the message names those missing and why.
        """
        start = self._clock()
        session = self.policy.session(start, remaining_s)
        features, replies = await self._fanout.ask(session, batch)
        fanout = _Fanout(start, len(batch), num_requests, session, tuple(replies))
        if len(features) < self.policy.config.quorum:
            num_devices = self.bundle.num_devices
            error = refusal(self.nodes, self.policy, session, replies, num_devices=num_devices, remaining_s=remaining_s)
            self._tell(fanout, "invalid" if isinstance(error, InputError) else "below_quorum")
            raise error
        answer = await self._fuse(fanout, features)
        if self.observers:
            # Once the answer has gone out, as far as the event loop allows.
            outcome: Outcome = "degraded" if answer.degraded else "ok"
            asyncio.get_running_loop().call_soon(self._tell, fanout, outcome, answer, features)
        return answer

    async def _fuse(self, fanout: _Fanout, features: Mapping[int, NDArray[np.float32]]) -> Answer:
        """Makes the answer of what has arrived: student → features [B, d_i]."""
        mask = mask_of(features)
        with span("nonn.fuse", nodes=len(features)):
            await self._solver.ensure(mask)
            logits = self._head.logits(features)
        answered = np.zeros(self.bundle.num_devices, np.bool_)
        answered[list(features)] = True
        missing = {}
        if len(features) != len(self.nodes):
            missing = missing_nodes(self.nodes, self.policy, fanout.session, fanout.replies)
        return Answer(
            logits=logits.astype(np.float32),
            confidence=self._head.confidence(logits, mask).astype(np.float32),
            answered=answered,
            degraded=len(features) < self.bundle.num_devices,
            bundle=self.bundle.hash,
            expected_accuracy=self.policy.accuracy[mask],
            failures={node: text for node, (_, text) in missing.items()},
            statuses={node: status for node, (status, _) in missing.items()},
            early=fanout.session.early,
            latency_s=self._clock() - fanout.start,
        )

    def _tell(
        self,
        fanout: _Fanout,
        outcome: Outcome,
        answer: Answer | None = None,
        features: Mapping[int, NDArray[np.float32]] | None = None,
    ) -> None:
        """Gives the observers what became of a fan-out."""
        if not self.observers:
            return
        now = self._clock()
        self.observers.on_request(
            RequestEvent(
                time_s=now,
                num_samples=fanout.num_samples,
                outcome=outcome,
                mask=answer.mask if answer else 0,
                expected_accuracy=answer.expected_accuracy if answer else 0.0,
                latency_s=answer.latency_s if answer else now - fanout.start,
                replies=fanout.replies,
                early=fanout.session.early,
                hedges=fanout.session.hedges,
                features=features,
                num_requests=fanout.num_requests,
            )
        )

    def _learn(self, reply: Reply, late: bool) -> None:
        """Takes note of what came of asking a node for a request."""
        if not self._fanout.asks(reply.node):
            return  # it left while it was asked, and the observers have forgotten it
        if reply.blameless:
            self.policy.dropped(reply.node.id)
            return
        if late and reply.ok:
            self.observers.on_late(LateEvent(self._clock(), reply.node.id, reply.latency_s))
        self._record(reply, late=late)

    def _record(self, reply: Reply, *, probe: bool = False, late: bool = False) -> None:
        """Gives the policy an outcome, and the observers a change of state."""
        node, now = reply.node.id, self._clock()
        if not self._fanout.asks(reply.node):
            return  # it left while it was probed
        before, was_ready = self.policy.state(node), self.ready
        if probe:
            changed = self.policy.on_probe(node, reply.ok, reply.latency_s, now)
        elif reply.ok:
            changed = self.policy.on_success(node, reply.latency_s, now, late=late)
        else:
            silent = reply.status is ReplyStatus.SILENT
            changed = self.policy.on_failure(node, reply.latency_s, now, silent=silent)
        if not changed:
            return
        after = self.policy.state(node)
        self.observers.on_state(StateEvent(now, node, before, after, reply.error))
        if after == "out":
            self._fanout.leave_out(node)
        self._changed(was_ready)

    def _changed(self, was_ready: bool) -> None:
        """The set of nodes to be asked is another one: probes, solutions and readiness follow."""
        self._wake.set()
        up = [node.student for node in self.nodes if self.policy.state(node.id) != "out"]
        self._solver.look_ahead(up)
        if self.ready is not was_ready:
            for waiter in self._waiting:
                waiter.set()

    async def _probe(self, node_id: str) -> None:
        """Sends one node a sample of zeros; its reply is checked like any other, and no client waits for it."""
        zeros = np.zeros((1, *self._shape), np.uint8)
        # Waiting for the channel, so that a node that has just come up is found before the next probe.
        reply = await self._fanout.probe(node_id, zeros, self.policy.config.deadline_s)
        if reply is not None:
            self._record(reply, probe=True)
        self._wake.set()

    async def _keep_probing(self) -> None:
        """Probes nodes that failed whenever the policy says so; sleeps while there are none."""
        while True:
            for node in self.policy.probes(self._clock()):
                self._tasks.start(self._probe(node), f"probe of node {node}")
            self._wake.clear()
            # Not wait_for: in Python 3.11 it swallows a cancellation that meets the event, and close() would hang.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.policy.next_probe_s(self._clock())):
                    await self._wake.wait()
