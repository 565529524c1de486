"""The aggregator: asks nodes, fuses their replies, and notifies its observers.

Features that contradict those of the other devices are not fused (nonn.aggregator.screening). Outcomes update the
states of the nodes (nonn.aggregator.states); nodes without requests are probed (nonn.aggregator.probing).

A request takes as long as its slowest asked node, and at most the deadline. One failing node never fails a request:
the features that arrived are fused with the head of exactly that subset, and the answer states the subset and its
accuracy. If that head is not solved in time, a subset of them is fused and stated (nonn.aggregator.solver).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.events import Observer, Observers, Outcome, RequestEvent
from nonn.aggregator.fanout import Connect, Fanout, OnPrompt
from nonn.aggregator.inventory import Node
from nonn.aggregator.joined import joined
from nonn.aggregator.missing import missing_nodes, refusal
from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.aggregator.policy.session import Session
from nonn.aggregator.probing import Prober
from nonn.aggregator.reply import Reply
from nonn.aggregator.screening import EXCLUDED, QUARANTINED, Screen, Screened
from nonn.aggregator.solver import HeadSolver
from nonn.aggregator.stalls import StallClock
from nonn.aggregator.states import NodeStates
from nonn.answer import Answer, ReplyStatus
from nonn.bundle import Bundle
from nonn.errors import ConfigError, InputError
from nonn.reliability.subsets import mask_of, members
from nonn.rpc.wire import Array, check_batch
from nonn.telemetry.background import Background
from nonn.telemetry.tracing import span

__all__ = ["Aggregator"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Fanout:
    """One batch that was sent to nodes.

    Attributes:
        start: time of its arrival.
        num_samples: number of samples B.
        num_requests: number of requests in the batch.
        session: the session that decided.
        replies: replies of every node that was asked.
    """

    start: float
    num_samples: int
    num_requests: int
    session: Session
    replies: tuple[Reply, ...]


class Aggregator:
    """Fuses the answers of a cluster; an asynchronous context manager.

    Args:
        bundle: the bundle that all nodes run.
        nodes: the inventory.
        config: options of the policy.
        observers: called at every request, change of state and late reply.
        connect: opens the channel to a node; in plain text by default.
        clock: monotonic time in seconds; by default without the times in which this process does not run.

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
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.bundle, self.nodes = bundle, tuple(nodes)
        self.observers = Observers(observers)
        config = config or PolicyConfig()
        if config.quorum > bundle.num_devices:
            raise ConfigError(f"quorum = {config.quorum}: the bundle has only {bundle.num_devices} devices")
        self.policy = Policy({node.id: node.student for node in nodes}, config, bundle.accuracies.lookup(), heard=False)
        self._stalls = StallClock()
        self._clock, self._event_clock = clock or self._stalls, clock or time.monotonic
        self._fanout = Fanout(nodes, bundle, lambda reply, late: self._states.learn(reply, late), connect, self._clock)
        self._states = NodeStates(
            self.policy,
            self._fanout,
            self.observers,
            self._changed,
            clock=self._clock,
            event_clock=self._event_clock,
            stalls=self._stalls,
        )
        self._prober = Prober(bundle, self.policy, self._fanout, self._states, self._clock)
        self._head = bundle.head
        self._solver = HeadSolver(bundle.head, self.policy.accuracy, config.fusion_budget_s)
        self._screen = Screen(bundle.consistency, config.exclusion_rate)
        if bundle.consistency is None:
            reason = "the bundle has no consistency.npz; build it again"
            _log.warning("no test for liars: %s", reason, extra={"event": "liars_off", "reason": reason})
        self._shape = bundle.manifest.input.shape
        self._tasks = Background()

    async def __aenter__(self) -> Self:
        self._tasks.start(self._stalls.keep(), "clock")
        await self._fanout.__aenter__()
        # One probe of every node opens the channels and finds nodes that do not answer or run another bundle.
        await asyncio.gather(*(self._prober.probe(node.id) for node in self.nodes))
        # Other subsets follow in the background.
        await self._solver.prepare(node.student for node in self.nodes)
        self._solver.look_ahead(node.student for node in self.nodes)
        self._states.started = True
        self._prober.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._prober.close()
        await self._tasks.close()
        await self._solver.close()
        await self._fanout.__aexit__(kind, exc, trace)

    async def add_node(self, node: Node) -> None:
        """Adds a node to the running cluster and probes it before returning; requests use it from then on.

        Several nodes may run the same student: they are replicas.

        Raises:
            ConfigError: the id is taken, or the bundle has no such student.
        """
        if node.id in self.policy.nodes:
            raise ConfigError(
                f"node '{node.id}' is already in the cluster; remove it first, or give this one another id"
            )
        if not 0 <= node.student < self.bundle.num_devices:
            raise ConfigError(
                f"node '{node.id}': student {node.student}; the bundle has 0 to {self.bundle.num_devices - 1}"
            )
        self.nodes = (*self.nodes, node)
        self._fanout.add(node)
        self._states.joined(node)
        await self._prober.probe(node.id)

    async def remove_node(self, node_id: str, reason: str = "removed") -> None:
        """Removes a node from the running cluster; requests already sent to it may still be answered.

        Raises:
            ConfigError: the node does not exist.
        """
        if node_id not in self.policy.nodes:
            raise ConfigError(f"no node '{node_id}' in the cluster")
        self.nodes = tuple(node for node in self.nodes if node.id != node_id)
        self._screen.suspicion.forget(node_id)
        self._states.left(node_id, reason)
        await self._fanout.remove(node_id, self.policy.config.deadline_s)

    def expel(self, quarantined: Mapping[str, int]) -> None:
        """Nodes that an earlier run had in quarantine return to it when they come; see ``Policy.expel``."""
        self.policy.expel(quarantined, self._clock())

    def on_fault(self, node: Node, reason: str) -> None:
        """A node has sent something invalid that belongs to no request; its breaker counts a failure."""
        if self._fanout.asks(node):
            self._states.note(node.id, partial(self.policy.on_fault, node.id), reason)

    def on_refusal(self, node_ids: Collection[str], num_samples: int) -> None:
        """Nodes have refused a batch and then accepted each of its requests alone: they are out for a while.

        Args:
            node_ids: the nodes.
            num_samples: number of samples of the batch.
        """
        for node in self.nodes:
            if node.id in node_ids:
                self._false_refusal(node, num_samples, "it refuses a batch and accepts its requests alone", out=True)

    def _false_refusal(self, node: Node, num_samples: int, reason: str, *, out: bool) -> bool:
        """A node has refused valid samples; returns whether that is its failure, rather than that of a limit."""
        record = self.policy.nodes.get(node.id)
        if record is None or num_samples > record.max_batch:
            return False
        if node.foreign and num_samples > 1:  # it does not have to state its limit
            self.policy.accepts(node.id, num_samples // 2)
            return False
        self._states.note(node.id, partial(self.policy.on_fault, node.id, out=out), reason)
        return True

    def cheap(self, answer: Answer) -> bool:
        """Whether an answer loses at most ``early_loss`` without the nodes that refused its batch."""
        refusing = [node.student for node in self.nodes if answer.statuses.get(node.id) is ReplyStatus.REFUSED]
        return self.policy.cheap(answer.mask, mask_of(refusing) & ~answer.mask)

    async def reconnect(self) -> None:
        """Opens every channel again after credentials have changed; no request fails because of it."""
        await self._fanout.reconnect(self.policy.config.deadline_s)

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic time in seconds, on which this process never stood still."""
        return self._clock

    @property
    def ready(self) -> bool:
        """Whether a request would reach its quorum, from the states of the nodes."""
        return self.policy.ready

    @property
    def students_up(self) -> int:
        """Number of students that at least one node runs that is up."""
        return self.policy.students_up

    def heard_s(self, node_id: str) -> float | None:
        """Seconds since the last good reply of a node; None before the first."""
        idle_s = self._states.idle_s(node_id)
        return idle_s if isfinite(idle_s) else None

    def readiness(self) -> AsyncIterator[bool]:
        """``ready`` now and again at every change."""
        return self._states.readiness()

    async def infer(self, inputs: Array, remaining_s: float | None = None) -> Answer:
        """Answers one batch from the devices that answer.

        Args:
            inputs: raw values [B, …], uint8 or float32.
            remaining_s: time until the client's deadline; None if it has none.

        Raises:
            InputError: the bundle or the nodes do not accept the batch.
            QuorumError: fewer devices answered than the quorum; the message names those missing and why.
        """
        start = self._event_clock()
        try:
            batch = check_batch({"input": inputs}, self._shape)
        except InputError:
            now = self._event_clock()
            self.observers.on_request(RequestEvent(now, 0, "invalid", latency_s=now - start))
            raise
        return await self.infer_checked(batch, remaining_s)

    async def infer_checked(
        self,
        batch: Array,
        remaining_s: float | None = None,
        *,
        num_requests: int = 1,
        on_prompt: OnPrompt | None = None,
    ) -> Answer:
        """Like ``infer``, for a checked batch of one or several requests.

        Args:
            batch: checked inputs [B, …].
            remaining_s: time until the client's deadline; None if it has none.
            num_requests: number of requests in the batch.
            on_prompt: called if only stragglers are missing, with the time that the other nodes took.

        Raises:
            InputError: the nodes do not accept it.
            QuorumError: fewer devices answered than the quorum; the message names those missing and why.
        """
        start = self._clock()
        self._prober.sizes.add(len(batch))
        session = self.policy.session(start, remaining_s, len(batch))
        features, replies = self._screened(session, *await self._fanout.ask(session, batch, on_prompt))
        if features and batch.dtype == np.uint8:
            replies = self._blamed(replies, len(batch))
        fanout = _Fanout(start, len(batch), num_requests, session, tuple(replies))
        if len(features) < self.policy.config.quorum:
            num_devices = self.bundle.num_devices
            error = refusal(
                self.nodes,
                self.policy,
                session,
                replies,
                num_devices=num_devices,
                num_samples=len(batch),
                remaining_s=remaining_s,
            )
            self._tell(fanout, "invalid" if isinstance(error, InputError) else "below_quorum")
            raise error
        answer = await self._fuse(fanout, features)
        if self.observers:
            # After the answer has been sent, as far as the event loop allows.
            outcome: Outcome = "degraded" if answer.degraded else "ok"
            asyncio.get_running_loop().call_soon(self._tell, fanout, outcome, answer, features)
        return answer

    def _screened(
        self, session: Session, features: Mapping[int, NDArray[np.float32]], replies: list[Reply]
    ) -> tuple[Mapping[int, NDArray[np.float32]], list[Reply]]:
        """Leaves out features that contradict the others; the evidence is added once the request is answered."""
        if not self._screen:
            return features, replies
        senders = {
            reply.node.student: reply.node.id
            for reply in replies
            # If two replicas answered, only one is fused.
            if reply.features is not None and features.get(reply.node.student) is reply.features
        }
        screened = self._screen.examine(features, senders)
        # After the answer has been sent, as far as the event loop allows.
        asyncio.get_running_loop().call_soon(self._quarantine, screened)
        for student in screened.excluded:
            session.exclude(student)
        if screened.excluded:
            out = {senders[student] for student in screened.excluded}
            status = ReplyStatus.INCONSISTENT
            replies = [
                replace(reply, status=status, features=None, error=EXCLUDED) if reply.node.id in out else reply
                for reply in replies
            ]
        return screened.features, replies

    def _blamed(self, replies: Sequence[Reply], num_samples: int) -> list[Reply]:
        """Makes refusals of bytes that other nodes accept failures: bytes are in the range of every student."""

        def false(reply: Reply) -> bool:
            refused = reply.status is ReplyStatus.REFUSED and self._fanout.asks(reply.node)
            return refused and self._false_refusal(reply.node, num_samples, reply.error, out=False)

        return [replace(reply, status=ReplyStatus.FAILED) if false(reply) else reply for reply in replies]

    def _quarantine(self, screened: Screened) -> None:
        """Adds the evidence of a request; nodes that send contradicting features repeatedly go into quarantine."""
        for node in self._screen.suspects(screened, self.policy.roster.quarantined):
            if node in self.policy.nodes:  # else it has left meanwhile
                self._states.note(node, partial(self.policy.on_contradiction, node), QUARANTINED)

    async def fuse(self, features: Mapping[int, NDArray[np.float32]]) -> Answer:
        """One answer from features that have arrived, however they did: of all of them whose head is solved in time.

        Args:
            features: student → [B, d_i], one or more.
        """
        return await self._fuse(None, features)

    async def _fuse(self, fanout: _Fanout | None, features: Mapping[int, NDArray[np.float32]]) -> Answer:
        """Builds the answer, of a fan-out or not, from the features that have arrived: student → [B, d_i]."""
        arrived, fused = mask_of(features), features
        with span("nonn.fuse", nodes=len(features)):
            mask = await self._solver.choose(arrived, self.policy.config.quorum)
            if mask != arrived:
                fused = {i: features[i] for i in members(mask)}
            logits = self._head.logits(fused)
        answered, stated = np.zeros(self.bundle.num_devices, np.bool_), self.bundle.accuracies.stated(mask)
        answered[[*fused]] = True
        missing: Mapping[str, tuple[ReplyStatus, str]] = {}
        if fanout and mask.bit_count() != len(self.nodes):
            missing = missing_nodes(
                self.nodes,
                self.policy,
                fanout.session,
                fanout.replies,
                num_samples=fanout.num_samples,
                unfused=arrived & ~mask,
            )
        return Answer(
            logits=logits.astype(np.float32),
            confidence=self._head.confidence(logits, mask).astype(np.float32),
            answered=answered,
            degraded=mask.bit_count() < self.bundle.num_devices,
            bundle=self.bundle.hash,
            expected_accuracy=stated.accuracy,
            expected_accuracy_interval=stated.interval,
            expected_accuracy_estimated=stated.estimated,
            failures={node: text for node, (_, text) in missing.items()},
            statuses={node: status for node, (status, _) in missing.items()},
            features=features,
            early=bool(fanout and fanout.session.early),
            latency_s=self._clock() - fanout.start if fanout else 0.0,
        )

    async def join(self, answers: Sequence[Answer]) -> Answer:
        """Joins the answers to consecutive parts of a request into one, of the devices that are in all of them.

        Raises:
            QuorumError: these are fewer than the quorum.
        """
        return await joined(answers, self._solver, self._head, self.bundle.accuracies, self.policy.config.quorum)

    def _tell(
        self,
        fanout: _Fanout,
        outcome: Outcome,
        answer: Answer | None = None,
        features: Mapping[int, NDArray[np.float32]] | None = None,
    ) -> None:
        """Reports the outcome of a fan-out to the observers."""
        if not self.observers:
            return
        now = self._event_clock()
        self.observers.on_request(
            RequestEvent(
                time_s=now,
                num_samples=fanout.num_samples,
                outcome=outcome,
                mask=answer.mask if answer else 0,
                expected_accuracy=answer.expected_accuracy if answer else 0.0,
                latency_s=answer.latency_s if answer else self._clock() - fanout.start,
                replies=fanout.replies,
                early=fanout.session.early,
                hedges=fanout.session.hedges,
                features=features,
                num_requests=fanout.num_requests,
            )
        )

    def _changed(self) -> None:
        """Updates probes and the heads to solve after the set of asked nodes has changed."""
        self._prober.wake()
        self._solver.look_ahead(node.student for node in self.nodes if self.policy.state(node.id) != "out")
