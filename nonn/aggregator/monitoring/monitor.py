"""Makes the state of a running cluster, for /api/state, ``nonn top`` and the dashboard.

An observer of the aggregator that keeps little: the last seconds and the last faults. It
also asks each node now and then how much memory it takes and which version it runs, and samples requests for the
drift alarm, which is judged in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from nonn import __version__
from nonn.aggregator.fanout import Connect
from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.drift import Baseline, DriftConfig, DriftNotice, DriftWatch, NodeDrift
from nonn.aggregator.monitoring.events import LateEvent, RequestEvent, StateEvent
from nonn.aggregator.monitoring.faultlog import Fault, FaultLog
from nonn.aggregator.monitoring.state import (
    SCHEMA,
    AccuracyNow,
    ClusterDrift,
    ClusterState,
    FaultState,
    NodeAgreement,
    NodeState,
    RecentSeconds,
    RequestState,
)
from nonn.aggregator.monitoring.timeline import Timeline, quantile
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.errors import BundleError
from nonn.reliability.subsets import mask_of
from nonn.rpc.v1 import inference_pb2 as pb

__all__ = ["Monitor"]

VITALS_EVERY_S = 10.0
VITALS_TIMEOUT_S = 1.0
FAULTS_SHOWN = 20
METADATA = "/inference.GRPCInferenceService/ModelMetadata"

_log = logging.getLogger(__name__)


class Monitor:
    """Watches one aggregator; an asynchronous context manager around its serving.

    Args:
        bundle: that the cluster runs.
        drift: how to watch for drift; None does not.
        on_drift: told whenever a node goes bad or is well again.
        clock: that of the aggregator.
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
        self._accuracy = bundle.table.accuracy
        self._started = clock()
        self._aggregator: Aggregator | None = None
        self.faults, self._timeline = FaultLog(), Timeline()
        self._outcomes: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._channels: dict[str, Any] = {}
        self._vitals: dict[str, Mapping[str, str]] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift")
        self._judging, self._next_sample, self._random = False, 0.0, random.Random(0)
        self._watch, self._unwatched = self._make_watch(drift)

    def _make_watch(self, config: DriftConfig | None) -> tuple[DriftWatch | None, str]:
        """The drift alarm, or why there is none."""
        if config is None:
            return None, "switched off"
        try:
            return DriftWatch(self._bundle, Baseline.of(self._bundle), config), ""
        except BundleError as exc:
            _log.warning("no drift alarm: %s", exc, extra={"event": "drift_off", "reason": str(exc)})
            return None, str(exc)

    def attach(self, aggregator: Aggregator) -> None:
        """Says which aggregator to watch; it must have this monitor among its observers."""
        self._aggregator = aggregator

    def remembering(self, connect: Connect) -> Connect:
        """The same as ``connect``, and the monitor may use the channels too."""

        def remember(node: Node) -> Any:
            self._channels[node.id] = channel = connect(node)
            return channel

        return remember

    async def __aenter__(self) -> Self:
        self._keep(asyncio.create_task(self._keep_asking()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._executor.shutdown(cancel_futures=True)

    def on_request(self, event: RequestEvent) -> None:
        """Counts a request and perhaps judges the nodes by it."""
        self._outcomes[event.outcome] += event.num_requests
        answered = event.features is not None
        for _ in range(0 if answered else event.num_requests):
            self._timeline.add(event.time_s, event.latency_s, None)
        if self._watch and answered and event.time_s >= self._next_sample and not self._judging:
            self._next_sample = event.time_s + 1 / self._watch.config.samples_per_s
            self._judging = True
            self._keep(asyncio.ensure_future(self._judge(self._watch, event)))

    def answered(self, answer: Answer) -> None:
        """Takes note of one client's answer; several may have come of one request to the nodes."""
        self._timeline.add(self._clock(), answer.latency_s, answer.expected_accuracy)

    def on_state(self, event: StateEvent) -> None:
        """Logs the change; forgets a node that has left, so that memory does not grow with those that come and go."""
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
        """Judges the nodes by one sample of a request."""
        assert event.features is not None
        before = self._nodes()
        row = self._random.randrange(event.num_samples)
        sample = {
            reply.node.id: (reply.node.student, reply.features[row])
            for reply in event.replies
            # Of replicas that both answered only one was fused, and only that one is judged.
            if reply.features is not None and event.features.get(reply.node.student) is reply.features
            # It may have left since, and has been forgotten, or another one came under its id.
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
        """Asks the nodes about themselves, beside the requests."""
        while True:
            for node in self._nodes().values():
                if node.id in self._channels:
                    self._keep(asyncio.create_task(self._ask(node, self._channels[node.id])))
            # Nodes are connected soon after the start; nobody should wait ten seconds for the first figures.
            await asyncio.sleep(VITALS_EVERY_S if self._vitals else VITALS_EVERY_S / 10)

    async def _ask(self, node: Node, channel: Any) -> None:
        """Asks one node; one that does not say is no fault, since a foreign server need not."""
        call = channel.unary_unary(
            METADATA,
            request_serializer=pb.ModelMetadataRequest.SerializeToString,
            response_deserializer=pb.ModelMetadataResponse.FromString,
        )
        with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
            request = pb.ModelMetadataRequest(name=node.model or f"student-{node.student}")
            self._vitals[node.id] = dict((await call(request, timeout=VITALS_TIMEOUT_S)).properties)

    def _keep(self, task: asyncio.Future[Any]) -> None:
        """Keeps a task alive until it ends or the monitor closes; logs what it failed with."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()):
            _log.error("watching failed: %s", exc, exc_info=exc)

    @property
    def ready(self) -> bool:
        """Whether a request would reach its quorum, as far as is known."""
        return self._aggregator is not None and self._aggregator.ready

    def state(self) -> ClusterState:
        """The state of the cluster now.

        Raises:
            AssertionError: no aggregator is attached.
        """
        aggregator, now, wall = self._aggregator, self._clock(), time.time()
        assert aggregator is not None, "attach an aggregator first"
        up = [node for node in aggregator.nodes if aggregator.policy.state(node.id) == "up"]
        drift = dict(self._watch.nodes) if self._watch else {}
        nodes = tuple(self._node(aggregator, node, up, drift.get(node.id)) for node in aggregator.nodes)
        return ClusterState(
            schema=SCHEMA,
            experiment=self._bundle.manifest.experiment,
            bundle=self._bundle.hash,
            version=__version__,
            time=wall,
            uptime_s=now - self._started,
            ready=aggregator.ready,
            quorum=aggregator.policy.config.quorum,
            devices=self._bundle.num_devices,
            accuracy=self._accuracies(up),
            nodes=nodes,
            requests=self._requests(now),
            drift=ClusterDrift(
                watching=self._watch is not None,
                reason=self._unwatched,
                alarms=tuple(node.id for node in nodes if node.drift.alarm),
            ),
            faults=tuple(
                FaultState(
                    time=wall - (now - fault.time_s),
                    event=fault.event,
                    node=fault.node,
                    before=fault.before,
                    after=fault.after,
                    reason=fault.reason,
                )
                for fault in list(self.faults)[:FAULTS_SHOWN]
            ),
        )

    def _node(self, aggregator: Aggregator, node: Node, up: Sequence[Node], drift: NodeDrift | None) -> NodeState:
        """One node."""
        record = aggregator.policy.nodes[node.id]
        vitals = self._vitals.get(node.id, {})
        rss = vitals.get("nonn_rss_bytes", "")
        others = mask_of(other.student for other in up if other.id != node.id)
        watched = drift is not None and drift.samples > 0
        return NodeState(
            id=node.id,
            address=node.address,
            student=node.student,
            part=self._bundle.manifest.students[node.student].part,
            state=aggregator.policy.state(node.id),
            asked=record.asked,
            answered=record.answered,
            answered_share=record.answered / record.asked if record.asked else None,
            late=self._late[node.id],
            latency_p50_s=record.latencies.quantile(0.5) or None,
            latency_p99_s=record.latencies.quantile(0.99) or None,
            version=vitals.get("nonn_version") or None,
            rss_bytes=int(rss) if rss.isdecimal() and int(rss) else None,
            value=float(self._accuracy[others | 1 << node.student] - self._accuracy[others]),
            drift=NodeAgreement(
                watched=watched,
                alarm=bool(drift and drift.alarm),
                agreement=drift.agreement if drift and watched else None,
                expected=drift.expected if drift and watched else None,
                samples=drift.samples if drift else 0,
            ),
        )

    def _accuracies(self, up: Sequence[Node]) -> AccuracyNow:
        """Accuracy of the nodes that are up, and of those that are left when one more dies."""
        now = mask_of(node.student for node in up)
        left = {
            node.id: float(self._accuracy[mask_of(other.student for other in up if other is not node)]) for node in up
        }
        worst = min(left, key=left.__getitem__, default="")
        return AccuracyNow(
            now=float(self._accuracy[now]),
            all=float(self._accuracy[-1]),
            teacher=self._bundle.manifest.teacher.get("accuracy"),
            next_worst=left.get(worst, 0.0),
            next_worst_node=worst,
            next_mean=sum(left.values()) / len(left) if left else 0.0,
        )

    def _requests(self, now: float) -> RequestState:
        """Requests since the start and in the last seconds."""
        seconds = self._timeline.seconds(now)
        latencies = [value for second in seconds for value in second.latencies_s]
        answers = [second.requests - second.failed for second in seconds]
        recent = seconds[-10:]
        return RequestState(
            total=self._outcomes.total(),
            by_outcome=dict(self._outcomes),
            per_second=sum(second.requests for second in recent) / len(recent),
            latency_p50_s=quantile(latencies, 0.5),
            latency_p99_s=quantile(latencies, 0.99),
            seconds=RecentSeconds(
                requests=tuple(second.requests for second in seconds),
                failed=tuple(second.failed for second in seconds),
                latency_p50_s=tuple(quantile(second.latencies_s, 0.5) for second in seconds),
                accuracy=tuple(
                    second.accuracy / count if count else None for second, count in zip(seconds, answers, strict=True)
                ),
            ),
        )
