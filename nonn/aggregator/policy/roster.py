"""The nodes as requests see them: the record of each, and which of them are asked while no node changes its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from nonn.aggregator.policy.breaker import Breaker
from nonn.aggregator.policy.latencies import Latencies
from nonn.aggregator.policy.pace import Pace

__all__ = ["NodeRecord", "Roster", "roster_of"]


@dataclass(slots=True)
class NodeRecord:
    """Record of one node.

    Attributes:
        breaker: decides whether it is asked and probed.
        asked: number of requests to it with a known outcome.
        answered: number of them with a good reply in time.
        pending: number of its open requests.
        latencies: latencies of its last good replies.
        pace: time that it takes for each sample of a batch.
        max_batch: most samples of one request that it accepts, as it states; infinity if it states none.
    """

    breaker: Breaker
    asked: int = 0
    answered: int = 0
    pending: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    pace: Pace = field(default_factory=Pace)
    max_batch: float = inf

    @property
    def latency_s(self) -> float:
        """Median of the last good replies; 0 before the first."""
        return self.latencies.quantile(0.5)


@dataclass(frozen=True)
class Roster:
    """The nodes that requests ask while no node changes its state.

    Attributes:
        groups: nodes of each student that is asked, up nodes before suspect ones.
        ask: the only node of each student; empty if a student has several, since the load then decides.
        below_quorum: whether fewer students are left than the quorum, so that all nodes outside quarantine are asked.
        all_up: whether all nodes that are asked are up.
        students_up: number of students that at least one node runs that is up.
        quarantined: nodes in quarantine.
        max_batch: most samples of one request that all nodes of ``groups`` accept.
    """

    groups: tuple[tuple[str, ...], ...]
    ask: tuple[str, ...]
    below_quorum: bool
    all_up: bool
    students_up: int
    quarantined: frozenset[str]
    max_batch: float


def roster_of(records: Mapping[str, NodeRecord], bits: Mapping[str, int], quorum: int) -> Roster:
    """Groups nodes by student and leaves out those that are out.

    Args:
        records: record of each node, by id.
        bits: id → bit of its student in a mask.
        quorum: fewest students of an answer.
    """
    states = {node: record.breaker.state for node, record in records.items()}
    quarantined = frozenset(node for node, record in records.items() if record.breaker.quarantined)
    groups: dict[int, list[str]] = {}
    for node, state in states.items():
        if state != "out":
            groups.setdefault(bits[node], []).append(node)
    below_quorum = len(groups) < quorum
    if below_quorum:
        groups = {}
        for node, bit in bits.items():
            if node not in quarantined:
                groups.setdefault(bit, []).append(node)
    asked = [node for group in groups.values() for node in group]
    return Roster(
        groups=tuple(map(tuple, groups.values())),
        # Below the quorum, all replicas at once: there is nothing to lose.
        ask=tuple(asked) if below_quorum or len(asked) == len(groups) else (),
        below_quorum=below_quorum,
        all_up=all(states[node] == "up" for node in asked),
        students_up=len({bits[node] for node, state in states.items() if state == "up"}),
        quarantined=quarantined,
        max_batch=min((records[node].max_batch for node in asked), default=inf),
    )
