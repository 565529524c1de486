"""States of the nodes: outcomes go to the policy, changes of state to the observers, readiness to its waiters.

Requests are the failure detector; probes are treated like them. An outcome is ignored if its node has left, and silence
is no evidence against a node if this process itself did not run meanwhile (nonn.aggregator.stalls).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from math import inf

from nonn.aggregator.events import LateEvent, Observers, StateEvent
from nonn.aggregator.fanout import Fanout
from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import Policy
from nonn.aggregator.reply import Reply
from nonn.aggregator.stalls import StallClock
from nonn.answer import ReplyStatus

__all__ = ["NodeStates"]


class NodeStates:
    """Records outcomes of the nodes of one aggregator.

    Args:
        policy: gets every outcome.
        fanout: knows which nodes are still asked.
        observers: get every change of state and every late reply.
        on_change: called after the set of asked nodes has changed.
        clock: monotonic time in seconds, without stalls.
        event_clock: time of events, in seconds.
        stalls: stalls of this process.

    Attributes:
        started: whether the nodes of the inventory have been probed once; that they answer then is no event.
    """

    def __init__(
        self,
        policy: Policy,
        fanout: Fanout,
        observers: Observers,
        on_change: Callable[[], None],
        *,
        clock: Callable[[], float],
        event_clock: Callable[[], float],
        stalls: StallClock,
    ) -> None:
        self._policy, self._fanout, self._observers, self._on_change = policy, fanout, observers, on_change
        self._clock, self._event_clock, self._stalls = clock, event_clock, stalls
        self._heard: dict[str, float] = {}  # when each node last gave a good reply
        self._waiting: set[asyncio.Event] = set()
        self.started = False

    def idle_s(self, node_id: str) -> float:
        """Seconds since the last good reply of a node; infinity before the first."""
        return self._clock() - self._heard.get(node_id, -inf)

    async def readiness(self) -> AsyncIterator[bool]:
        """Whether a request would reach its quorum, now and again at every change."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while True:
                ready = self._policy.ready
                yield ready
                while self._policy.ready is ready:
                    changed.clear()
                    await changed.wait()
        finally:
            self._waiting.discard(changed)

    def joined(self, node: Node) -> None:
        """A node has joined; its state is unknown until it answers."""
        was_ready = self._policy.ready
        self._policy.add(node.id, node.student, heard=False)
        self._observers.on_state(StateEvent(self._event_clock(), node.id, "", self._policy.state(node.id), "joined"))
        self._changed(was_ready)

    def left(self, node_id: str, reason: str) -> None:
        """A node has left or was removed."""
        was_ready, before = self._policy.ready, self._policy.state(node_id)
        self._policy.remove(node_id)
        self._heard.pop(node_id, None)
        self._observers.on_state(StateEvent(self._event_clock(), node_id, before, "", reason))
        self._changed(was_ready)

    def learn(self, reply: Reply, late: bool) -> None:
        """Records the outcome of a node for a request.

        Args:
            reply: the outcome.
            late: whether the request was answered without it.
        """
        if not self._fanout.asks(reply.node):
            return  # it left meanwhile, and the observers have forgotten it
        policy, node, took_s, num_samples = self._policy, reply.node.id, reply.latency_s, reply.num_samples
        if reply.ok:
            if late:
                self._observers.on_late(LateEvent(self._event_clock(), node, took_s))
            self._heard[node], lag_s = self._clock(), reply.lag_s

            def success(now: float) -> bool:
                return policy.on_success(node, took_s, now, late=late, lag_s=lag_s, num_samples=num_samples)

            if policy.state(node) == "up":  # nearly always; an answer does not change that
                success(self._heard[node])
            else:
                self.note(node, success)
        elif reply.blameless or self._stalled(reply):
            policy.dropped(node)
        else:
            silent = reply.status is ReplyStatus.SILENT
            self.note(
                node,
                lambda now: policy.on_failure(node, took_s, now, silent=silent, num_samples=num_samples),
                reply.error,
            )

    def probed(self, reply: Reply) -> None:
        """Records the outcome of a probe."""
        if not self._fanout.asks(reply.node):
            return  # it left meanwhile
        policy, node, ok, took_s = self._policy, reply.node.id, reply.ok, reply.latency_s
        if self._stalled(reply):
            policy.nodes[node].breaker.probing = False
            return
        if ok:
            self._heard[node] = self._clock()
        self.note(node, lambda now: policy.on_probe(node, ok, took_s, now), reply.error)

    def _stalled(self, reply: Reply) -> bool:
        """Whether this process did not run meanwhile, so that the silence is not evidence against the node."""
        return not reply.ok and self._stalls.stalled_since(self._clock() - reply.latency_s)

    def note(self, node: str, outcome: Callable[[float], bool], reason: str = "") -> None:
        """Reports an outcome to the policy, and a change of state with its reason to the observers.

        Args:
            node: its id.
            outcome: called with the time; returns whether the state of the node has changed.
            reason: of the change.
        """
        now, before, was_ready = self._clock(), self._policy.state(node), self._policy.ready
        if not outcome(now):
            return
        after = self._policy.state(node)
        if self.started or after != "up":
            self._observers.on_state(StateEvent(self._event_clock(), node, before, after, reason))
        if after == "out":
            self._fanout.leave_out(node)
        self._changed(was_ready)

    def _changed(self, was_ready: bool) -> None:
        self._on_change()
        if self._policy.ready is not was_ready:
            for waiter in self._waiting:
                waiter.set()
