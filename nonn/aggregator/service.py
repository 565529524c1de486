"""The aggregator itself: ask, learn, fuse, tell.

A request costs what its slowest asked node costs, and at most the deadline. One failing node never fails a request:
what arrived is fused with the head of exactly that set, and the answer states the set and its accuracy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.fanout import Connect, Fanout
from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.events import LateEvent, Observer, Observers, Outcome, RequestEvent, StateEvent
from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.aggregator.policy.session import Session
from nonn.aggregator.reply import Reply
from nonn.aggregator.solver import HeadSolver
from nonn.answer import Answer, ReplyStatus
from nonn.bundle import Bundle
from nonn.errors import ConfigError, InputError, NonnError, QuorumError
from nonn.reliability.subsets import mask_of
from nonn.rpc.background import Background
from nonn.rpc.wire import Array, check_batch
from nonn.telemetry.tracing import span

__all__ = ["Aggregator"]


class Aggregator:
    """Fuses the answers of a cluster; an asynchronous context manager.

    Args:
        bundle: that all nodes run.
        nodes: the inventory.
        config: of the policy.
        observers: told of every request, change of state and late reply.
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
        # With everybody's head solved the first request finds it; the others follow beside the requests.
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
            self._tell(start, 0, "invalid")
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
        if len(features) < self.policy.config.quorum:
            error = self._refusal(session, replies, remaining_s)
            invalid = isinstance(error, InputError)
            self._tell(
                start,
                len(batch),
                "invalid" if invalid else "below_quorum",
                replies,
                session,
                num_requests=num_requests,
            )
            raise error
        mask = mask_of(features)
        with span("nonn.fuse", nodes=len(features)):
            await self._solver.ensure(mask)
            logits = self._head.logits(features)
        answered = np.zeros(self.bundle.num_devices, np.bool_)
        answered[list(features)] = True
        now = self._clock()
        missing = {} if len(features) == len(self.nodes) else self._missing(session, replies)
        answer = Answer(
            logits=logits.astype(np.float32),
            confidence=self._head.confidence(logits, mask).astype(np.float32),
            answered=answered,
            degraded=len(features) < self.bundle.num_devices,
            bundle=self.bundle.hash,
            expected_accuracy=self.policy.accuracy[mask],
            failures={node: text for node, (_, text) in missing.items()},
            statuses={node: status for node, (status, _) in missing.items()},
            early=session.early,
            latency_s=now - start,
        )
        if self.observers:
            # Once the answer has gone out, as far as the event loop allows.
            asyncio.get_running_loop().call_soon(
                self._tell,
                start,
                len(batch),
                "degraded" if answer.degraded else "ok",
                replies,
                session,
                answer,
                features,
                num_requests,
            )
        return answer

    def _tell(
        self,
        start: float,
        num_samples: int,
        outcome: Outcome,
        replies: Sequence[Reply] = (),
        session: Session | None = None,
        answer: Answer | None = None,
        features: Mapping[int, NDArray[np.float32]] | None = None,
        num_requests: int = 1,
    ) -> None:
        """Tells the observers of a request."""
        if self.observers:
            now = self._clock()
            event = RequestEvent(
                time_s=now,
                num_samples=num_samples,
                outcome=outcome,
                mask=answer.mask if answer else 0,
                expected_accuracy=answer.expected_accuracy if answer else 0.0,
                latency_s=answer.latency_s if answer else now - start,
                replies=tuple(replies),
                early=session is not None and session.early,
                hedges=session.hedges if session else 0,
                features=features,
                num_requests=num_requests,
            )
            self.observers.on_request(event)

    def _refusal(self, session: Session, replies: Sequence[Reply], remaining_s: float | None) -> NonnError:
        """Why there is no answer."""
        if remaining_s is not None and not session.ask and self.nodes:
            return QuorumError(
                f"the client's deadline leaves {1e3 * remaining_s:.0f} ms, of which fusing takes "
                f"{1e3 * self.policy.config.fusion_budget_s:g}: nobody was asked; allow more time"
            )
        if replies and all(reply.blameless for reply in replies):
            return InputError(f"no node takes this request; {replies[0].node.id}: {replies[0].error}")
        missing = [f"{node} ({text})" for node, (_, text) in self._missing(session, replies).items()]
        if not self.nodes:
            missing.append("no node is in the cluster")
        elif nowhere := sorted(set(range(self.bundle.num_devices)) - {node.student for node in self.nodes}):
            missing.append(f"no node in the cluster runs student {', '.join(map(str, nowhere))}")
        return QuorumError(
            f"{session.answered.bit_count()} of {self.bundle.num_devices} devices answered, the quorum is "
            f"{self.policy.config.quorum}; missing: {'; '.join(missing)}"
        )

    def _missing(self, session: Session, replies: Iterable[Reply]) -> dict[str, tuple[ReplyStatus, str]]:
        """Why each node is missing whose student did not answer, in the order of the inventory."""
        asked = {reply.node.id: reply for reply in replies if not reply.ok}
        reasons = {}
        for node in self.nodes:
            record = self.policy.nodes[node.id]
            if session.answered >> node.student & 1:
                continue
            if reply := asked.get(node.id):
                reasons[node.id] = reply.status, reply.error
            elif node.id in session.waiting:
                text = "not waited for: it would cost more time than it is worth"
                reasons[node.id] = ReplyStatus.NOT_AWAITED, text
            elif failures := record.breaker.failures:
                reasons[node.id] = ReplyStatus.LEFT_OUT, f"left out after {failures} failures in a row"
            else:
                reasons[node.id] = ReplyStatus.NOT_ASKED, "not asked"
        return reasons

    def _learn(self, reply: Reply, late: bool) -> None:
        """Takes note of what came of asking a node for a request."""
        if not self._fanout.asks(reply.node):
            return  # it left while it was asked, and whoever watches has forgotten it
        if reply.blameless:
            self.policy.dropped(reply.node.id)
            return
        if late and reply.ok:
            self.observers.on_late(LateEvent(self._clock(), reply.node.id, reply.latency_s))
        self._record(reply, late=late)

    def _record(self, reply: Reply, *, probe: bool = False, late: bool = False) -> None:
        """Tells the policy, and whoever has to know of a change."""
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
        """Asks one node for an answer that nobody waits for: a sample of zeros, checked like any other."""
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
