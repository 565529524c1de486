"""Watches an aggregator and gives the state of its cluster, for /api/state, ``nonn top`` and the dashboard.

It is an observer that stores only the last seconds and the last faults. It also asks each node periodically for its
memory and version, and samples requests for the drift alarm, which runs in a separate thread. ``snapshot`` builds the
parts of the state.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from nonn import __version__
from nonn.aggregator.events import LateEvent, RequestEvent, StateEvent
from nonn.aggregator.fanout import Connect
from nonn.aggregator.inventory import Node
from nonn.aggregator.metadata import ask_metadata
from nonn.aggregator.monitoring.drift import Baseline, DriftConfig, DriftNotice, DriftWatch
from nonn.aggregator.monitoring.faultlog import Fault, FaultLog
from nonn.aggregator.monitoring.snapshot import accuracy_now, fault_state, node_state, request_state
from nonn.aggregator.monitoring.state import SCHEMA, ClusterDrift, ClusterState
from nonn.aggregator.monitoring.timeline import Timeline
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.errors import BundleError, InputError
from nonn.rpc.guard import RefusalLog
from nonn.telemetry.background import Background
from nonn.telemetry.printable import printable

__all__ = ["Monitor"]

VITALS_EVERY_S = 10.0
VITALS_TIMEOUT_S = 1.0
VITALS, VITALS_LIMIT = ("nonn_version", "nonn_rss_bytes"), 40  # properties that are shown, and characters of each
FAULTS_SHOWN = 20

_log = logging.getLogger(__name__)


class Monitor:
    """Watches one aggregator; an asynchronous context manager around its serving.

    Args:
        bundle: the bundle that the cluster runs.
        drift: options of the drift alarm; None turns it off.
        on_drift: called when a node goes bad or is good again.
        clock: the clock of the aggregator.
    """

    def __init__(
        self,
        bundle: Bundle,
        drift: DriftConfig | None = None,
        *,
        on_drift: Callable[[DriftNotice], None] = lambda notice: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bundle, self._clock, self._on_drift = bundle, clock, on_drift
        self._started = clock()
        self._aggregator: Aggregator | None = None
        self.faults, self._timeline = FaultLog(), Timeline()
        self._outcomes: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._channels: dict[str, Any] = {}
        self._vitals: dict[str, Mapping[str, str]] = {}
        self._tasks, self._refusals = Background(), RefusalLog()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift")
        self._judging, self._next_sample, self._random = False, 0.0, random.Random(0)
        self._watch, self._unwatched = self._make_watch(drift)

    def _make_watch(self, config: DriftConfig | None) -> tuple[DriftWatch | None, str]:
        """The drift alarm, or the reason why it is off."""
        if config is None:
            return None, "switched off"
        try:
            return DriftWatch(self._bundle, Baseline.of(self._bundle), config), ""
        except BundleError as exc:
            _log.warning("no drift alarm: %s", exc, extra={"event": "drift_off", "reason": str(exc)})
            return None, str(exc)

    def attach(self, aggregator: Aggregator) -> None:
        """Sets the aggregator to watch; it must have this monitor among its observers."""
        self._aggregator = aggregator

    def remembering(self, connect: Connect) -> Connect:
        """Like ``connect``; the monitor also uses the channels."""

        def remember(node: Node) -> Any:
            self._channels[node.id] = channel = connect(node)
            return channel

        return remember

    async def __aenter__(self) -> Self:
        self._tasks.start(self._keep_asking(), "asking nodes about themselves")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.close()
        self._watch = None  # the aggregator may go on without being watched, after another bundle is served
        self._executor.shutdown(cancel_futures=True)

    def on_request(self, event: RequestEvent) -> None:
        """Counts a request, and may test the nodes with it."""
        self._outcomes[event.outcome] += event.num_requests
        answered = event.features is not None
        for _ in range(0 if answered else event.num_requests):
            self._timeline.add(event.time_s, event.latency_s, None)
        if self._watch and answered and event.time_s >= self._next_sample and not self._judging:
            self._next_sample = event.time_s + 1 / self._watch.config.samples_per_s
            self._judging = True
            self._tasks.start(self._judge(self._watch, event), "drift alarm")

    def answered(self, answer: Answer) -> None:
        """Records one client's answer; one fan-out may serve several clients."""
        self._timeline.add(self._clock(), answer.latency_s, answer.expected_accuracy)

    def on_state(self, event: StateEvent) -> None:
        """Logs the change; forgets a node that has left, so that memory stays bounded."""
        self.faults.add(Fault(event.time_s, "state", event.node, event.before, event.after, event.reason))
        if not event.after:
            known: tuple[dict[str, Any], ...] = (self._late, self._channels, self._vitals)
            for figures in known:
                figures.pop(event.node, None)
            if self._watch:
                self._executor.submit(self._watch.forget, event.node)

    def on_late(self, event: LateEvent) -> None:
        """Counts a late reply."""
        self._late[event.node] += 1

    async def _judge(self, watch: DriftWatch, event: RequestEvent) -> None:
        """Tests the nodes with one sample of a request."""
        assert event.features is not None
        before = self._nodes()
        row = self._random.randrange(event.num_samples)
        sample = {
            reply.node.id: (reply.node.student, reply.features[row])
            for reply in event.replies
            # If two replicas answered, only one was fused, and only that one is tested.
            if reply.features is not None and event.features.get(reply.node.student) is reply.features
            # It may have left and been forgotten since, or another one may have come with its id.
            if before.get(reply.node.id) is reply.node
        }
        try:
            notices = await asyncio.get_running_loop().run_in_executor(self._executor, watch.observe, sample)
        finally:
            self._judging = False
        now = self._nodes()
        for notice in notices:
            if now.get(notice.node) is not before.get(notice.node):
                continue
            after = {"alarm": "drifting", "clear": "clear", "inputs": "inputs changed"}[notice.kind]
            self.faults.add(Fault(self._clock(), "drift", notice.node, "", after, notice.reason))
            self._on_drift(notice)

    def _nodes(self) -> dict[str, Node]:
        """The nodes that are in the cluster, by id."""
        return {node.id: node for node in self._aggregator.nodes} if self._aggregator else {}

    async def _keep_asking(self) -> None:
        """Asks the nodes for their metadata, independently of requests."""
        while True:
            for node in self._nodes().values():
                if node.id in self._channels:
                    self._tasks.start(self._ask(node, self._channels[node.id]), f"metadata of node {node.id}")
            # Nodes connect soon after the start, and the first figures should not take ten seconds.
            await asyncio.sleep(VITALS_EVERY_S if self._vitals else VITALS_EVERY_S / 10)

    async def _ask(self, node: Node, channel: Any) -> None:
        """Asks one node; no reply is not a fault, since a foreign server may not report anything, but a bad one is."""
        try:
            properties = await ask_metadata(channel, node.model or f"student-{node.student}", VITALS_TIMEOUT_S)
        except (grpc.RpcError, asyncio.CancelledError):
            return
        except InputError as exc:
            self._refusals.add(f"node '{node.id}': {exc}", node.address)
            if self._aggregator is not None:
                self._aggregator.on_fault(node, str(exc))
            return
        self._vitals[node.id] = {key: printable(properties[key], VITALS_LIMIT) for key in VITALS if key in properties}
        stated = properties.get("nonn_max_batch", "")
        if self._aggregator is not None and stated.isascii() and stated.isdecimal() and int(stated[:9]) > 0:
            self._aggregator.policy.accepts(node.id, int(stated[:9]))

    def readiness(self) -> tuple[bool, str]:
        """Whether a request would reach its quorum, and how many students are up, in words."""
        aggregator = self._aggregator
        if aggregator is None:
            return False, "starting"
        text = f"{aggregator.students_up} of {self._bundle.num_devices} students are up"
        quorum = aggregator.policy.config.quorum
        return aggregator.ready, f"ready: {text}" if aggregator.ready else f"below the quorum of {quorum}: {text}"

    def state(self) -> ClusterState:
        """The state of the cluster now.

        Raises:
            AssertionError: no aggregator is attached.
        """
        aggregator, now, wall = self._aggregator, self._clock(), time.time()
        assert aggregator is not None, "attach an aggregator first"
        policy, bundle = aggregator.policy, self._bundle
        up = [node for node in aggregator.nodes if policy.state(node.id) == "up"]
        drift = dict(self._watch.nodes) if self._watch else {}
        nodes = tuple(
            node_state(
                bundle,
                policy,
                node,
                up,
                late=self._late[node.id],
                vitals=self._vitals.get(node.id, {}),
                drift=drift.get(node.id),
                heard_s=aggregator.heard_s(node.id),
            )
            for node in aggregator.nodes
        )
        return ClusterState(
            schema=SCHEMA,
            experiment=bundle.manifest.experiment,
            bundle=bundle.hash,
            version=__version__,
            time=wall,
            uptime_s=now - self._started,
            ready=aggregator.ready,
            quorum=policy.config.quorum,
            devices=bundle.num_devices,
            students_up=aggregator.students_up,
            accuracy=accuracy_now(bundle, up),
            nodes=nodes,
            requests=request_state(self._outcomes, self._timeline.seconds(now)),
            drift=ClusterDrift(
                watching=self._watch is not None,
                reason=self._unwatched,
                alarms=tuple(node.id for node in nodes if node.drift.alarm),
            ),
            faults=tuple(fault_state(fault, wall - now) for fault in list(self.faults)[:FAULTS_SHOWN]),
        )
