"""Requests of the aggregator itself to nodes that joined, that failed, or that no request has asked for a while.

Without requests the states of nodes would become stale, so a node that has answered nothing for some seconds is probed.
A node in quarantine must answer known inputs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nonn.aggregator.fanout import Fanout
from nonn.aggregator.policy import Policy
from nonn.aggregator.policy.latencies import Latencies
from nonn.aggregator.states import NodeStates
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.bundle.known import TOLERANCE
from nonn.telemetry.background import Background

__all__ = ["Prober"]

USUAL_QUANTILE = 0.95  # of the sizes of the last fan-outs: a probe is as large
IDLE_S = 2.0  # a node that has answered nothing for this time is probed, at most half of it later


class Prober:
    """Probes the nodes of one aggregator.

    Args:
        bundle: the bundle that all nodes run.
        policy: decides when failed nodes are probed.
        fanout: the channels to the nodes.
        states: gets the outcomes.
        clock: monotonic time in seconds.

    Attributes:
        sizes: samples of the last fan-outs.
    """

    def __init__(
        self, bundle: Bundle, policy: Policy, fanout: Fanout, states: NodeStates, clock: Callable[[], float]
    ) -> None:
        self._bundle, self._policy, self._fanout, self._states, self._clock = bundle, policy, fanout, states, clock
        self._random = np.random.default_rng()  # nodes must not foresee which known inputs they receive
        self.sizes = Latencies()
        self._wake = asyncio.Event()
        self._tasks = Background()

    def start(self) -> None:
        """Starts to probe nodes that failed and nodes without requests."""
        self._tasks.start(self._keep_probing(), "probing of nodes that failed")
        self._tasks.start(self._keep_hearing(), "probing of nodes without requests")

    async def close(self) -> None:
        """Ends all probes."""
        await self._tasks.close()

    def wake(self) -> None:
        """The next probe may be due earlier than it was."""
        self._wake.set()

    async def probe(self, node_id: str) -> None:
        """Sends one node zeros and checks the reply like any other; no client waits for it.

        After a failure they are as many samples as the larger requests have, since a node may hang only on those. In
        quarantine it must answer known inputs.
        """
        record = self._policy.nodes.get(node_id)
        if record is None:
            return
        breaker = record.breaker
        if breaker.quarantined and not breaker.probing:
            return  # its test is not due: it came back under the same id
        quarantined = breaker.quarantined
        known = self._bundle.known if quarantined else None
        most = int(min(record.max_batch, 1 << 30))
        num_samples = min(most, max(1, int(self.sizes.quantile(USUAL_QUANTILE)))) if breaker.failures else 1
        zeros = np.zeros((num_samples, *self._bundle.manifest.input.shape), np.uint8)
        chosen, batch = known.draw(self._random, most) if known else (None, zeros)
        # It waits for the channel, so that a node that has just come up is found before the next probe.
        reply = await self._fanout.probe(node_id, batch, self._policy.config.deadline_s)
        if known and chosen is not None and reply is not None and reply.features is not None:
            error = known.error(reply.node.student, chosen, reply.features)
            if error > TOLERANCE:
                text = f"known inputs: features are off by {error:.2f} of their spread"
                reply = replace(reply, status=ReplyStatus.INCONSISTENT, features=None, error=text)
        if breaker.quarantined and not quarantined:
            breaker.probing = False  # it has been put there meanwhile, and zeros are no test
        elif reply is not None:
            self._states.probed(reply)
        self.wake()

    async def _keep_probing(self) -> None:
        """Probes failed nodes when the policy requires it; sleeps while there are none."""
        while True:
            for node in self._policy.probes(self._clock()):
                self._tasks.start(self.probe(node), f"probe of node {node}")
            self._wake.clear()
            # Not wait_for: in Python 3.11 it swallows a cancellation that coincides with the event; close() would hang.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._policy.next_probe_s(self._clock())):
                    await self._wake.wait()

    async def _keep_hearing(self) -> None:
        """Probes nodes that no request has asked for a while, so that their states are true without requests too."""
        while True:
            await asyncio.sleep(IDLE_S / 2)
            for node, record in tuple(self._policy.nodes.items()):
                breaker = record.breaker
                # A failed node is probed anyway.
                idle = not breaker.failures and self._states.idle_s(node) >= IDLE_S
                if idle and not breaker.probing:
                    breaker.probing = True
                    self._tasks.start(self.probe(node), f"probe of idle node {node}")
