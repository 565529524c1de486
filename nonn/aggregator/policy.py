"""Whom to ask, how long to wait, and whom to leave out: logic without clock, network or threads.

Time is an argument, so the same object runs in the aggregator and in the simulator.

The request itself is the failure detector. A node is

- *up* while its last reply was good, or nothing is known of it yet;
- *suspect* after a failure: requests still ask it, since a dead process refuses in microseconds;
- *out* after ``breaker_failures`` in a row: requests no longer wait for it, so that a node that hangs costs at most
  that many deadlines.

Suspect and out nodes are probed every ``breaker_reset_s``, beside the requests and not on their time; one good reply
and the node is up again. This is a circuit breaker (Nygard 2007, Release It!) whose half-open state costs no request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from nonn.errors import ConfigError

__all__ = ["NodeRecord", "Plan", "Policy", "PolicyConfig"]

LATENCY_WEIGHT = 0.2  # of the newest reply in the moving average
# A client may wait less than the deadline. Silence then counts against a node only if it usually answers this many
# times faster; or clients in a hurry could switch healthy nodes off for everybody.
HURRY_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What the operator decides.

    Attributes:
        deadline_s: how long one request waits for its nodes.
        quorum: fewer answers than this are no answer.
        breaker_failures: failures in a row after which a node is left out.
        breaker_reset_s: time between probes of a node that failed.
        fusion_budget_s: kept from a client's deadline for fusing and sending.
    """

    deadline_s: float = 1.0
    quorum: int = 1
    breaker_failures: int = 2
    breaker_reset_s: float = 1.0
    fusion_budget_s: float = 0.005

    def __post_init__(self) -> None:
        for name in ("deadline_s", "breaker_reset_s"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be a positive number of seconds")
        for name in ("quorum", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.fusion_budget_s < 0:
            raise ConfigError(f"fusion_budget_s = {self.fusion_budget_s}: must not be negative")


@dataclass(frozen=True)
class Plan:
    """What one request does.

    Attributes:
        ask: nodes to ask and wait for.
        deadline_s: how long.
    """

    ask: tuple[str, ...]
    deadline_s: float


@dataclass
class NodeRecord:
    """What is known of one node.

    Attributes:
        asked: requests that asked it.
        answered: those that it answered well in time.
        failures: in a row, up to now; 0 is up.
        latency_s: moving average of its good replies; 0 before the first.
        probe_at: when to probe it next.
        probing: whether a probe is on its way.
        up_since: when it last came back.
    """

    asked: int = 0
    answered: int = 0
    failures: int = 0
    latency_s: float = 0.0
    probe_at: float = inf
    probing: bool = False
    up_since: float = -inf


class Policy:
    """Plans requests from the outcomes of earlier ones.

    Args:
        nodes: ids, in the order in which plans name them.
        config: what the operator decides.

    Raises:
        ConfigError: the quorum is larger than the number of nodes.
    """

    def __init__(self, nodes: Iterable[str], config: PolicyConfig) -> None:
        self.config = config
        self.nodes = {node: NodeRecord() for node in nodes}
        if config.quorum > len(self.nodes):
            raise ConfigError(f"quorum = {config.quorum}: there are only {len(self.nodes)} nodes")

    @property
    def ready(self) -> bool:
        """Whether as many nodes as the quorum asks for are up."""
        return sum(record.failures == 0 for record in self.nodes.values()) >= self.config.quorum

    def state(self, node: str) -> str:
        """``up``, ``suspect`` or ``out``."""
        failures = self.nodes[node].failures
        return "up" if failures == 0 else "suspect" if failures < self.config.breaker_failures else "out"

    def plan(self, remaining_s: float | None = None) -> Plan:
        """What a request that arrives now should do.

        Args:
            remaining_s: time until the client's deadline; None if it has none.

        Returns:
            The nodes that are not out. If those are fewer than the quorum, all nodes: there is nothing to lose.
        """
        ask = tuple(node for node in self.nodes if self.state(node) != "out")
        if len(ask) < self.config.quorum:
            ask = tuple(self.nodes)
        deadline_s = self.config.deadline_s
        if remaining_s is not None:
            deadline_s = max(0.0, min(deadline_s, remaining_s - self.config.fusion_budget_s))
        return Plan(ask, deadline_s)

    def record(
        self, node: str, ok: bool, latency_s: float, now: float, *, timed_out: bool = False, probe: bool = False
    ) -> None:
        """Learns from one reply, or from its absence.

        Args:
            node: that was asked.
            ok: whether a valid reply came in time.
            latency_s: from asking to now.
            now: time of the outcome, on any clock that does not go back.
            timed_out: it failed by silence.
            probe: nobody waited for it.
        """
        record = self.nodes[node]
        if probe:
            record.probing = False
        else:
            record.asked += 1
            record.answered += ok
        if ok:
            if record.failures:
                record.up_since = now
            record.failures, record.probe_at = 0, inf
            weight = LATENCY_WEIGHT if record.latency_s else 1.0
            record.latency_s += weight * (latency_s - record.latency_s)
        elif now - latency_s >= record.up_since and not (timed_out and self._hurried(record, latency_s)):
            # What was asked before the node came back says nothing about the node now.
            record.failures += 1
            record.probe_at = now + self.config.breaker_reset_s
        elif probe and record.failures:
            record.probe_at = now + self.config.breaker_reset_s

    def _hurried(self, record: NodeRecord, waited_s: float) -> bool:
        """Whether the wait was too short for silence to count."""
        usual = record.latency_s or inf
        return waited_s < min(self.config.deadline_s, HURRY_FACTOR * usual) - self.config.fusion_budget_s

    def probes(self, now: float) -> tuple[str, ...]:
        """Nodes to probe now; each is then on its way until ``record(…, probe=True)``."""
        due = tuple(n for n, record in self.nodes.items() if record.probe_at <= now and not record.probing)
        for node in due:
            self.nodes[node].probing = True
        return due

    def next_probe_s(self, now: float) -> float | None:
        """Time until the next probe is due; None while every node is up or being probed."""
        waiting = [r.probe_at for r in self.nodes.values() if not r.probing]
        first = min(waiting, default=inf)
        return None if first == inf else max(0.0, first - now)
