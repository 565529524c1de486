"""The state of a running cluster as one document: /api/state, the metadata of the aggregator, ``nonn top``, dashboard.

Latencies are in seconds; times are seconds since 1970. Standard library only: ``nonn top`` loads it without the rest of
the aggregator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, Difference, Share, Whole

__all__ = [
    "SCHEMA",
    "AccuracyNow",
    "ClusterDrift",
    "ClusterState",
    "FaultState",
    "NodeAgreement",
    "NodeState",
    "RecentSeconds",
    "RequestState",
]

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class NodeAgreement:
    """How often a node agrees with the others.

    Attributes:
        watched: whether the alarm has tested it.
        alarm: whether it has gone bad.
        agreement: how often it puts the others' class first, smoothed, in [0, 1]; null unless watched.
        expected: how often it did as built, smoothed, in [0, 1]; null unless watched.
        samples: number of samples it was tested with.
    """

    watched: bool
    alarm: bool
    agreement: float | None
    expected: float | None
    samples: Whole


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """One node.

    Attributes:
        id: its name.
        address: host:port.
        student: number of its student.
        part: number of its part.
        state: unknown (it has never answered), up, suspect or out.
        asked: requests sent to it.
        answered: replies in time.
        answered_share: `answered` ÷ `asked`; null before the first request.
        late: replies after the answer was given.
        latency_p50_s: median time to reply; null before the first reply.
        latency_p99_s: 99th percentile of it; null before the first reply.
        version: version of its software; null if it does not report it.
        rss_bytes: resident memory; null if it does not report it.
        value: accuracy lost if it fails now, or gained if it returns.
        drift: how often it agrees with the others.
        heard_s: seconds since its last good reply; null before the first.
    """

    id: str
    address: str
    student: Whole
    part: Whole
    state: str
    asked: Whole
    answered: Whole
    answered_share: float | None
    late: Whole
    latency_p50_s: float | None
    latency_p99_s: float | None
    version: str | None
    rss_bytes: Whole | None
    value: Difference
    drift: NodeAgreement
    heard_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class AccuracyNow:
    """Expected accuracy of the nodes that are up.

    Attributes:
        now: accuracy of these nodes.
        all: accuracy with all devices.
        teacher: accuracy of the teacher; null if the bundle does not record it.
        next_worst: accuracy if the most important of these nodes fails next; 0 without nodes.
        next_worst_node: that node; empty without nodes.
        next_mean: accuracy if one of these nodes fails next, mean over the nodes.
        interval: 95 % interval of `now`, for the finite test set; absent from older aggregators.
        next_worst_interval: the same of `next_worst`.
        samples: samples of the test set.
        next_mean_interval: 95 % interval of `next_mean`, as of one subset of devices: too wide for a mean.
    """

    now: Share
    all: Share
    teacher: float | None
    next_worst: Share
    next_worst_node: str
    next_mean: float
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    next_worst_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    samples: Whole | None = field(default=None, metadata=OPTIONAL)
    next_mean_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class RecentSeconds:
    """The last seconds, oldest first, one value a second.

    Attributes:
        requests: number of requests in this second.
        failed: requests without an answer.
        latency_p50_s: median latency; null without an answer.
        accuracy: mean expected accuracy of the answers; null without an answer.
    """

    requests: tuple[Whole, ...]
    failed: tuple[Whole, ...]
    latency_p50_s: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class RequestState:
    """Requests since the start and in the last seconds.

    Attributes:
        total: number since the start.
        by_outcome: the same by outcome.
        per_second: mean rate of the last ten seconds.
        latency_p50_s: median latency of the last seconds; null without an answer.
        latency_p99_s: 99th percentile of the latency in the last seconds; null without an answer.
        seconds: the last seconds one by one.
    """

    total: Whole
    by_outcome: Mapping[str, Whole]
    per_second: float
    latency_p50_s: float | None
    latency_p99_s: float | None
    seconds: RecentSeconds


@dataclass(frozen=True, kw_only=True)
class ClusterDrift:
    """The drift alarm.

    Attributes:
        watching: whether it is on.
        reason: why it is off; empty if it is on.
        alarms: nodes that have gone bad.
    """

    watching: bool
    reason: str
    alarms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FaultState:
    """A change of a node, or of all of them.

    Attributes:
        time: time of the change.
        event: its kind.
        node: its id; empty for all nodes.
        before: state before; empty where there was none.
        after: state after; empty for a node that has left.
        reason: why.
    """

    time: float
    event: str
    node: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """A running cluster.

    Attributes:
        schema: version of this document.
        experiment: name of the experiment.
        bundle: SHA-256 of the served bundle's manifest as hex.
        version: version of the aggregator.
        time: time of this state.
        uptime_s: time since the aggregator started.
        ready: whether a request would reach its quorum.
        quorum: number of devices that an answer needs.
        devices: number of devices of the bundle.
        students_up: number of students that at least one node runs that is up.
        accuracy: expected accuracy of the nodes that are up.
        nodes: one entry for each node.
        requests: since the start and in the last seconds.
        drift: the drift alarm.
        faults: the newest first.
    """

    schema: Whole
    experiment: str
    bundle: str
    version: str
    time: float
    uptime_s: float
    ready: bool
    quorum: Whole
    devices: Whole
    students_up: Whole = 0
    accuracy: AccuracyNow
    nodes: tuple[NodeState, ...]
    requests: RequestState
    drift: ClusterDrift
    faults: tuple[FaultState, ...]
