"""Whom to ask, how long to wait, and whom to leave out: logic without clock, network or threads.

Time is an argument, so the same object runs in the aggregator and in the simulator. A ``Session`` decides for one
request (nonn.aggregator.policy.session); this is what all of them know of the nodes.

The request itself is the failure detector. A node is

- *up* while its last reply was good, or nothing is known of it yet;
- *suspect* after a failure that cost no time, such as a refused connection or a bad reply: requests still ask it;
- *out* after ``breaker_failures`` of those in a row, or after one silence of a whole deadline: requests no longer ask
  it, and those that wait for it stop, so that a node that hangs costs one deadline in all.

Suspect and out nodes are probed, beside the requests and not on their time; one good reply and the node is up again.
The first probe is sent at once, so that a node whose link has lost a single message is back within a round trip, and
then every ``breaker_reset_s``. Who fails again before it has answered a request waits for the second kind. This is a
circuit breaker (Nygard 2007, Release It!) whose half-open state costs no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from nonn.aggregator.policy.latencies import Latencies
from nonn.aggregator.policy.session import Session
from nonn.errors import ConfigError

__all__ = ["NodeRecord", "Policy", "PolicyConfig"]

# A client may wait less than the deadline. Silence then counts against a node only if 95 % of its answers come this
# many times faster; or clients in a hurry could switch healthy nodes off for everybody.
HURRY_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What the operator decides.

    Attributes:
        deadline_s: how long one request waits for its nodes.
        quorum: fewer students that answer than this are no answer.
        breaker_failures: failures in a row after which a node is left out; silence leaves it out at once.
        breaker_reset_s: time between probes of a node that failed.
        fusion_budget_s: kept from a client's deadline for fusing and sending.
        hedge_quantile: share of a node's answers that come before a replica is asked too; 1 waits for its slowest.
        accuracy_per_ms: accuracy that one millisecond of waiting is worth, 0.0001 for a hundredth of a point; 0 waits
            for every node that is not out. Off by default: what a millisecond is worth, only the operator can know,
            and without it the same devices answer every request.
    """

    deadline_s: float = 1.0
    quorum: int = 1
    breaker_failures: int = 2
    breaker_reset_s: float = 0.5
    fusion_budget_s: float = 0.005
    hedge_quantile: float = 0.95
    accuracy_per_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("deadline_s", "breaker_reset_s"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be a positive number of seconds")
        for name in ("quorum", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("fusion_budget_s", "accuracy_per_ms"):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must not be negative")
        if self.fusion_budget_s > self.deadline_s:
            raise ConfigError(
                f"fusion_budget_s = {self.fusion_budget_s}: must not be above deadline_s = {self.deadline_s}, "
                "which it is kept from"
            )
        if not 0 < self.hedge_quantile <= 1:
            raise ConfigError(f"hedge_quantile = {self.hedge_quantile}: must be above 0 and at most 1")


@dataclass
class NodeRecord:
    """What is known of one node.

    Attributes:
        asked: requests that asked it and know what came of it.
        answered: those that it answered well and in time for the answer.
        pending: requests that it has been asked and that are still open.
        failures: in a row, up to now; 0 is up.
        latencies: of its last good replies.
        probe_at: when to probe it next.
        probing: whether a probe is on its way.
        up_since: when it last came back.
        proven: it has answered a request since then.
    """

    asked: int = 0
    answered: int = 0
    pending: int = 0
    failures: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    probe_at: float = inf
    probing: bool = False
    up_since: float = -inf
    proven: bool = False

    @property
    def latency_s(self) -> float:
        """Median of the last good replies; 0 before the first."""
        return self.latencies.quantile(0.5)


@dataclass(frozen=True)
class _Roster:
    """Whom requests ask while no node changes its state.

    Attributes:
        groups: nodes of each student that is asked, those that are up before those that are suspect.
        ask: the only node of each student; empty if one has several, and the load decides.
        desperate: too few are left for the quorum, so everybody is asked.
        calm: all that are asked are up.
        ready: as many students as the quorum asks for are up.
    """

    groups: tuple[tuple[str, ...], ...]
    ask: tuple[str, ...]
    desperate: bool
    calm: bool
    ready: bool


class Policy:
    """Decides for requests from the outcomes of earlier ones.

    Args:
        nodes: id → student that the node runs, in the order in which they are asked.
        config: what the operator decides.
        accuracy: of each set of students [2^N]; early fusion needs it.

    Attributes:
        nodes: what is known of each.
        bits: id → bit of its student in a mask.
        replicated: several nodes run the same student.

    Raises:
        ConfigError: ``accuracy_per_ms`` without a table.
    """

    def __init__(self, nodes: Mapping[str, int], config: PolicyConfig, accuracy: Sequence[float] = ()) -> None:
        if config.accuracy_per_ms and not accuracy:
            raise ConfigError(f"accuracy_per_ms = {config.accuracy_per_ms}: needs the accuracy of every answering set")
        self.config, self.accuracy = config, accuracy
        self.nodes: dict[str, NodeRecord] = {}
        self.bits: dict[str, int] = {}
        self.replicated = False
        self._roster: _Roster | None = None
        for node, student in nodes.items():
            self.add(node, student)

    def add(self, node: str, student: int) -> None:
        """Takes a node into the cluster; it is up until something else is known."""
        self.nodes[node], self.bits[node] = NodeRecord(), 1 << student
        self._changed()

    def remove(self, node: str) -> None:
        """Forgets a node."""
        del self.nodes[node], self.bits[node]
        self._changed()

    def _changed(self) -> None:
        self.replicated = len(set(self.bits.values())) < len(self.bits)
        self._roster = None

    @property
    def ready(self) -> bool:
        """Whether as many students as the quorum asks for are up."""
        return self.roster.ready

    @property
    def calm(self) -> bool:
        """Whether every node that a request would ask is up."""
        return self.roster.calm

    @property
    def roster(self) -> _Roster:
        """Whom requests ask now."""
        if self._roster is None:
            self._roster = self._new_roster()
        return self._roster

    def state(self, node: str) -> str:
        """``up``, ``suspect`` or ``out``."""
        failures = self.nodes[node].failures
        return "up" if failures == 0 else "suspect" if failures < self.config.breaker_failures else "out"

    def session(self, now: float, remaining_s: float | None = None) -> Session:
        """The decisions of a request that arrives now.

        Args:
            now: on any clock that does not go back.
            remaining_s: time until the client's deadline; None if it has none.

        Returns:
            It asks the nodes that are not out, one of each student. If those are fewer than the quorum it asks all
            nodes: there is nothing to lose. If the client's deadline leaves no time, it asks nobody.
        """
        roster, deadline_s = self.roster, self.config.deadline_s
        if remaining_s is not None and remaining_s - self.config.fusion_budget_s < deadline_s:
            deadline_s = remaining_s - self.config.fusion_budget_s
            if deadline_s <= 0:
                return Session(self, (), {}, now, 0.0, desperate=False)
        ask, spares = roster.ask, dict[int, tuple[str, ...]]()
        if not ask:
            chosen = [self._by_load(group) for group in roster.groups]
            ask = tuple(group[0] for group in chosen)
            spares = {self.bits[group[0]].bit_length() - 1: group[1:] for group in chosen if len(group) > 1}
        for node in ask:
            self.nodes[node].pending += 1
        return Session(self, ask, spares, now, deadline_s, roster.desperate)

    def asked(self, node: str) -> bool:
        """A session wants to ask one node more; says whether it may: it is still there, and not out."""
        if node not in self.nodes or self.state(node) == "out":
            return False
        self.nodes[node].pending += 1
        return True

    def dropped(self, node: str) -> None:
        """A request has been given up before this node answered; nothing is learnt from that."""
        if node in self.nodes:
            self.nodes[node].pending -= 1

    def record(
        self,
        node: str,
        ok: bool,
        latency_s: float,
        now: float,
        *,
        timed_out: bool = False,
        probe: bool = False,
        late: bool = False,
    ) -> bool:
        """Learns from one reply, or from its absence.

        Args:
            node: that was asked.
            ok: whether a valid reply came before its deadline.
            latency_s: from asking to now.
            now: time of the outcome, on any clock that does not go back.
            timed_out: it failed by silence.
            probe: nobody waited for it.
            late: the answer had been given without it.

        Returns:
            Whether its state has changed.
        """
        record = self.nodes.get(node)
        if record is None:
            return False  # it left while it was asked
        if probe:
            record.probing = False
        else:
            record.pending -= 1
            record.asked += 1
        if ok:
            if not probe:
                record.proven = True
                record.answered += not late
            if not probe or not len(record.latencies):  # a probe also waits for a connection
                record.latencies.add(latency_s)
            if not record.failures:
                return False
            record.up_since, record.failures, record.probe_at = now, 0, inf
            record.proven = not probe
            self._roster = None
            return True
        # What was asked before the node came back says nothing about the node now.
        if now - latency_s < record.up_since or (timed_out and self._hurried(record, latency_s)):
            if probe and record.failures:
                record.probe_at = now + self.config.breaker_reset_s
            return False
        before = self.state(node)
        silent = timed_out and not probe  # a probe is silent too while it waits for a connection
        record.failures = max(record.failures + 1, self.config.breaker_failures if silent else 0)
        if probe:
            record.probe_at = now + self.config.breaker_reset_s
        else:
            at = now if record.proven else now + self.config.breaker_reset_s
            record.probe_at, record.proven = min(record.probe_at, at), False
        if self.state(node) == before:
            return False
        self._roster = None
        return True

    def hedge_after_s(self, node: str) -> float:
        """How long a node may be silent before a replica is asked too; half the deadline while nothing is known."""
        record = self.nodes.get(node)
        if record is None:
            return 0.0
        return record.latencies.quantile(self.config.hedge_quantile) or self.config.deadline_s / 2

    def probes(self, now: float) -> tuple[str, ...]:
        """Nodes to probe now; each is then on its way until ``record(…, probe=True)``."""
        due = tuple(n for n, record in self.nodes.items() if record.probe_at <= now and not record.probing)
        for node in due:
            self.nodes[node].probing = True
        return due

    def next_probe_s(self, now: float) -> float | None:
        """Time until the next probe is due; None while every node is up or being probed."""
        first = min((r.probe_at for r in self.nodes.values() if not r.probing), default=inf)
        return None if first == inf else max(0.0, first - now)

    def _hurried(self, record: NodeRecord, waited_s: float) -> bool:
        """Whether the wait was too short for silence to count."""
        usual_s = record.latencies.quantile(0.95) or inf
        return waited_s < min(self.config.deadline_s - self.config.fusion_budget_s, HURRY_FACTOR * usual_s)

    def _by_load(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """Nodes of one student, the one that should answer first in front; a node that is not up comes last."""

        def expected(node: str) -> tuple[bool, float]:
            record = self.nodes[node]
            return record.failures > 0, (1 + record.pending) * record.latency_s

        return group if len(group) == 1 else tuple(sorted(group, key=expected))

    def _new_roster(self) -> _Roster:
        """Groups nodes by student and leaves out those that are out."""
        states = {node: self.state(node) for node in self.nodes}
        groups: dict[int, list[str]] = {}
        for node, state in states.items():
            if state != "out":
                groups.setdefault(self.bits[node], []).append(node)
        desperate = len(groups) < self.config.quorum
        if desperate:
            groups = {}
            for node, bit in self.bits.items():
                groups.setdefault(bit, []).append(node)
        asked = [node for group in groups.values() for node in group]
        up = {self.bits[node] for node, state in states.items() if state == "up"}
        return _Roster(
            groups=tuple(map(tuple, groups.values())),
            # Everybody at once where there is nothing to lose.
            ask=tuple(asked) if desperate or len(asked) == len(groups) else (),
            desperate=desperate,
            calm=all(states[node] == "up" for node in asked),
            ready=len(up) >= self.config.quorum,
        )
