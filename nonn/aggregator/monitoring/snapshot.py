"""Builds the parts of a cluster's state from the aggregator and its monitor. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.drift import NodeDrift
from nonn.aggregator.monitoring.faultlog import Fault
from nonn.aggregator.monitoring.state import (
    AccuracyNow,
    FaultState,
    NodeAgreement,
    NodeState,
    RecentSeconds,
    RequestState,
)
from nonn.aggregator.monitoring.timeline import Second, quantile
from nonn.aggregator.policy.policy import Policy
from nonn.bundle import Bundle
from nonn.reliability.intervals import share_interval
from nonn.reliability.subsets import mask_of

__all__ = ["accuracy_now", "fault_state", "node_agreement", "node_state", "request_state"]

_RECENT = 10  # seconds over which the request rate is averaged


def node_state(
    bundle: Bundle,
    policy: Policy,
    node: Node,
    up: Sequence[Node],
    *,
    late: int,
    vitals: Mapping[str, str],
    drift: NodeDrift | None,
    heard_s: float | None,
) -> NodeState:
    """One node.

    Args:
        bundle: the bundle that the cluster runs.
        policy: the policy, which has its record.
        node: the node.
        up: the nodes that are up, with or without this one.
        late: number of replies that came after the answer.
        vitals: properties that the node reports.
        drift: record of its agreement with the others.
        heard_s: seconds since its last good reply; None before the first.
    """
    record, accuracy = policy.nodes[node.id], bundle.accuracies.lookup()
    rss = vitals.get("nonn_rss_bytes", "")
    others = mask_of(other.student for other in up if other.id != node.id)
    return NodeState(
        id=node.id,
        address=node.address,
        student=node.student,
        part=bundle.manifest.students[node.student].part,
        state=policy.state(node.id),
        asked=record.asked,
        answered=record.answered,
        answered_share=record.answered / record.asked if record.asked else None,
        late=late,
        latency_p50_s=record.latencies.quantile(0.5) or None,
        latency_p99_s=record.latencies.quantile(0.99) or None,
        version=vitals.get("nonn_version") or None,
        rss_bytes=int(rss) if rss.isdecimal() and int(rss) else None,
        value=float(accuracy[others | 1 << node.student] - accuracy[others]),
        drift=node_agreement(drift),
        heard_s=heard_s,
    )


def node_agreement(drift: NodeDrift | None) -> NodeAgreement:
    """How often a node agrees with the others; its figures are None if it was never tested."""
    if drift is None or not drift.samples:
        alarm = drift is not None and drift.alarm
        return NodeAgreement(watched=False, alarm=alarm, agreement=None, expected=None, samples=0)
    return NodeAgreement(
        watched=True, alarm=drift.alarm, agreement=drift.agreement, expected=drift.expected, samples=drift.samples
    )


def accuracy_now(bundle: Bundle, up: Sequence[Node]) -> AccuracyNow:
    """Accuracy of the nodes that are up, and of those that are left when one more fails."""
    table, accuracy = bundle.accuracies, bundle.accuracies.lookup()
    without = {node.id: mask_of(other.student for other in up if other is not node) for node in up}
    left = {node: float(accuracy[mask]) for node, mask in without.items()}
    worst = min(left, key=left.__getitem__, default="")
    now = mask_of(node.student for node in up)
    mean = sum(left.values()) / len(left) if left else 0.0
    return AccuracyNow(
        now=float(accuracy[now]),
        all=float(accuracy[table.full]),
        teacher=bundle.manifest.teacher.get("accuracy"),
        next_worst=left.get(worst, 0.0),
        next_worst_node=worst,
        next_mean=mean,
        interval=table.stated(now).interval,
        next_worst_interval=table.stated(without.get(worst, 0)).interval,
        samples=table.samples,
        next_mean_interval=share_interval(min(1.0, mean), table.samples) if left else (0.0, 0.0),
    )


def request_state(outcomes: Mapping[str, int], seconds: Sequence[Second]) -> RequestState:
    """Requests by outcome since the start, and in the last seconds."""
    latencies = [value for second in seconds for value in second.latencies_s]
    answers = [second.requests - second.failed for second in seconds]
    recent = seconds[-_RECENT:]
    return RequestState(
        total=sum(outcomes.values()),
        by_outcome=dict(outcomes),
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


def fault_state(fault: Fault, offset_s: float) -> FaultState:
    """A fault; ``offset_s`` turns its time on the clock into seconds since 1970."""
    return FaultState(
        time=fault.time_s + offset_s,
        event=fault.event,
        node=fault.node,
        before=fault.before,
        after=fault.after,
        reason=fault.reason,
    )
