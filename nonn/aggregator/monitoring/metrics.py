"""Prometheus metrics of an aggregator, in a separate registry.

======================================================  =========  ==================================================
``nonn_requests_total{model,outcome}``                  counter    ok, degraded, below_quorum, invalid, exhausted
``nonn_request_duration_seconds``                       histogram  requests with an answer
``nonn_node_rpc_duration_seconds{node,part,code}``      histogram  one of ``CODES``
``nonn_nodes_up``                                       gauge      nodes whose last reply was good
``nonn_students_up``                                    gauge      students that such a node runs
``nonn_quarantined_nodes``                              gauge      nodes that contradicted the others repeatedly
``nonn_answered_nodes``                                 histogram  nodes fused in one answer
``nonn_degraded_requests_total``                        counter    answers without all devices
``nonn_expected_accuracy``                              gauge      of the last answer, in [0, 1]
``nonn_late_replies_total{node}``                       counter    replies after the answer was sent
``nonn_early_fusions_total``                            counter    answers that did not wait for a device by policy
``nonn_node_drift{node}``                               gauge      1 while the node no longer answers as built
======================================================  =========  ==================================================

Cardinality is bounded: outcomes and codes are fixed sets, and the series of a node are removed when the node leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nonn.aggregator.events import LateEvent, RequestEvent, StateEvent
from nonn.aggregator.monitoring.drift import DriftNotice
from nonn.aggregator.service import Aggregator
from nonn.answer import MODEL, Answer, ReplyStatus
from nonn.errors import MissingExtraError

if TYPE_CHECKING:
    from prometheus_client import Histogram

__all__ = ["CODES", "Metrics"]

CODES = ("OK", "DEADLINE_EXCEEDED", "UNAVAILABLE", "BAD_REPLY", "INCONSISTENT", "BAD_REQUEST", "ERROR")
_CODES = {
    ReplyStatus.OK: "OK",
    ReplyStatus.SILENT: "DEADLINE_EXCEEDED",
    ReplyStatus.UNREACHABLE: "UNAVAILABLE",
    ReplyStatus.MALFORMED: "BAD_REPLY",
    ReplyStatus.INCONSISTENT: "INCONSISTENT",
    ReplyStatus.REFUSED: "BAD_REQUEST",
    ReplyStatus.GIVEN_UP: "BAD_REQUEST",
}
# From a round trip on loopback to a very long deadline.
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def code_of(status: ReplyStatus) -> str:
    """The outcome of a node as one of ``CODES``."""
    return _CODES.get(status, "ERROR")


class Metrics:
    """An observer that counts.

    Args:
        num_devices: number of devices N of the bundle.

    Raises:
        MissingExtraError: prometheus-client is not installed.
    """

    def __init__(self, num_devices: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        except ModuleNotFoundError as exc:
            raise MissingExtraError("prometheus-client", extra="serve") from exc
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("nonn_requests", "Requests by outcome.", ("model", "outcome"), registry=registry)
        self._duration = Histogram(
            "nonn_request_duration_seconds", "From request to answer.", buckets=BUCKETS_S, registry=registry
        )
        self._rpc = Histogram(
            "nonn_node_rpc_duration_seconds",
            "From asking a node to its reply or failure.",
            ("node", "part", "code"),
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._up = Gauge("nonn_nodes_up", "Nodes whose last reply was good.", registry=registry)
        self._quarantined = Gauge(
            "nonn_quarantined_nodes", "Nodes that contradicted the others repeatedly.", registry=registry
        )
        self._students = Gauge("nonn_students_up", "Students that such a node runs.", registry=registry)
        self._answered = Histogram(
            "nonn_answered_nodes", "Nodes fused in one answer.", buckets=range(1, num_devices + 1), registry=registry
        )
        self._degraded = Counter("nonn_degraded_requests", "Answers without all devices.", registry=registry)
        # Without a value until the first answer: 0 would be an alarm.
        self._accuracy = Gauge("nonn_expected_accuracy", "Expected accuracy of the last answer.", registry=None)
        self._answers = False
        self._late = Counter("nonn_late_replies", "Replies after the answer.", ("node",), registry=registry)
        self._early = Counter(
            "nonn_early_fusions", "Answers that did not wait for a device by policy.", registry=registry
        )
        self._drift = Gauge("nonn_node_drift", "1 while a node is not as built.", ("node",), registry=registry)
        self._part: Callable[[int], int] = lambda student: student
        self._nodes: set[str] = set()
        self._series: dict[tuple[str, str], Histogram] = {}  # labels() locks and formats, eight times a request

    def attach(self, aggregator: Aggregator) -> None:
        """Sets the aggregator whose nodes are measured."""
        self._part = lambda student: aggregator.bundle.manifest.students[student].part
        self._students.set_function(lambda: aggregator.students_up)
        self._quarantined.set_function(lambda: len(aggregator.policy.roster.quarantined))
        self._up.set_function(lambda: sum(aggregator.policy.state(node.id) == "up" for node in aggregator.nodes))
        for node in aggregator.nodes:
            self._add(node.id)

    def _add(self, node: str) -> None:
        """Starts the series of a node at zero, so that a rate includes its first event."""
        self._nodes.add(node)
        self._late.labels(node)
        self._drift.labels(node)

    def on_request(self, event: RequestEvent) -> None:
        """Counts a request and its replies."""
        self._requests.labels(MODEL, event.outcome).inc(event.num_requests)
        for reply in event.replies:
            key = reply.node.id, code_of(reply.status)
            if key[0] not in self._nodes:
                continue  # it left while it was asked
            if key not in self._series:
                self._series[key] = self._rpc.labels(key[0], str(self._part(reply.node.student)), key[1])
            self._series[key].observe(reply.latency_s)
        if event.features is not None:
            self._answered.observe(len(event.features))
            self._accuracy.set(event.expected_accuracy)
            if not self._answers:
                self._answers = True
                self.registry.register(self._accuracy)
            self._degraded.inc(event.num_requests * (event.outcome == "degraded"))
            self._early.inc(event.num_requests * event.early)

    def answered(self, answer: Answer) -> None:
        """Records the latency of one client's answer; one fan-out may serve several clients."""
        self._duration.observe(answer.latency_s)

    def on_state(self, event: StateEvent) -> None:
        """Starts and removes the series of nodes that join and leave."""
        if not event.before:
            self._add(event.node)
        if not event.after:
            self._nodes.discard(event.node)
            for family in (self._late, self._drift, self._rpc):
                family.remove_by_labels({"node": event.node})
            self._series = {key: series for key, series in self._series.items() if key[0] != event.node}

    def on_late(self, event: LateEvent) -> None:
        """Counts a late reply."""
        if event.node in self._nodes:
            self._late.labels(event.node).inc()

    def on_drift(self, notice: DriftNotice) -> None:
        """Marks a node that has gone bad."""
        if notice.node in self._nodes:
            self._drift.labels(notice.node).set(notice.kind == "alarm")

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics, in the format that a scraper accepts.

        Args:
            accept: Accept header of the scraper.

        Returns:
            The body and its content type.
        """
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
