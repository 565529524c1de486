"""The records of all nodes, and the sessions opened from them: logic without clock, network or threads.

Time is an argument, so the same object runs in the aggregator and in the simulator. A ``Session`` decides for one
request (nonn.aggregator.policy.session); the policy has the state that they share. The request itself is the failure
detector: each outcome goes to the node's circuit breaker (nonn.aggregator.policy.breaker), and a node that is out is
neither asked nor waited for, so a hung node costs one deadline in total.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import inf

from nonn.aggregator.policy.breaker import Breaker
from nonn.aggregator.policy.config import PolicyConfig
from nonn.aggregator.policy.latencies import Latencies
from nonn.aggregator.policy.roster import NodeRecord, Roster, roster_of
from nonn.aggregator.policy.session import Session
from nonn.errors import ConfigError
from nonn.reliability.table import AccuracyOf

__all__ = ["Policy"]

# A client may wait less than the deadline. Silence is then a failure of a node only if 95 % of its answers come this
# many times faster; otherwise clients with short deadlines could take healthy nodes out for all clients.
HURRY_FACTOR = 10.0
ROUNDING = 1e-9  # of differences of accuracies
# A straggler with as many open requests gets no further ones that can be answered without it: it would only queue them.
STRAGGLER_OPEN = 4
EXPELLED = 1024  # nodes that left in quarantine and are remembered


class Policy:
    """Decides for requests from the outcomes of earlier ones.

    Args:
        nodes: id → student that the node runs, in the order in which they are asked.
        config: options of the operator.
        accuracy: accuracy of each subset of students; early fusion needs it.
        heard: whether the nodes are taken to be up from the start; otherwise they are unknown until they answer.

    Attributes:
        nodes: record of each node, by id.
        bits: id → bit of its student in a mask.
        replicated: whether several nodes run the same student.
        stragglers: nodes whose last reply came much later than those of the others, or has not come yet.

    Raises:
        ConfigError: ``accuracy_per_ms`` is set without ``accuracy``.
    """

    def __init__(
        self, nodes: Mapping[str, int], config: PolicyConfig, accuracy: AccuracyOf = (), *, heard: bool = True
    ) -> None:
        if config.accuracy_per_ms and not accuracy:
            raise ConfigError(
                f"accuracy_per_ms = {config.accuracy_per_ms}: needs the accuracy of every subset of devices"
            )
        self.config, self.accuracy = config, accuracy
        self.nodes: dict[str, NodeRecord] = {}
        self.bits: dict[str, int] = {}
        self.replicated = False
        self.stragglers: set[str] = set()
        self._roster: Roster | None = None
        self._expelled: OrderedDict[str, Breaker] = OrderedDict()  # a node that leaves in quarantine returns to it
        for node, student in nodes.items():
            self.add(node, student, heard=heard)

    def add(self, node: str, student: int, *, heard: bool = True) -> None:
        """Adds a node to the cluster; requests ask it until it fails, unless it left in quarantine.

        Args:
            node: its id.
            student: the student that it runs.
            heard: whether it is up; otherwise it is unknown until it answers.
        """
        config = self.config
        breaker = self._expelled.pop(node, None) or Breaker(
            config.breaker_failures, config.breaker_reset_s, heard, quarantine_s=config.quarantine_s
        )
        self.nodes[node], self.bits[node] = NodeRecord(breaker), 1 << student
        self._changed()

    def remove(self, node: str) -> None:
        """Forgets a node, but not a quarantine."""
        if (breaker := self.nodes[node].breaker).quarantined:
            breaker.probing = False
            self._expelled[node] = breaker
            if len(self._expelled) > EXPELLED:
                self._expelled.popitem(last=False)
        del self.nodes[node], self.bits[node]
        self.stragglers.discard(node)
        self._changed()

    def quarantined(self) -> dict[str, int]:
        """Quarantines in a row of each node that is in quarantine, or that left the cluster in it."""
        inside = {node: record.breaker for node, record in self.nodes.items() if record.breaker.quarantined}
        return {node: breaker.quarantines for node, breaker in (self._expelled | inside).items()}

    def expel(self, quarantined: Mapping[str, int], now: float) -> None:
        """Nodes that were in quarantine in an earlier run return to it when they are added.

        Args:
            quarantined: quarantines in a row, by node.
            now: time, on the clock of the other calls.
        """
        config = self.config
        for node, quarantines in quarantined.items():
            breaker = Breaker(config.breaker_failures, config.breaker_reset_s, quarantine_s=config.quarantine_s)
            breaker.quarantines = max(0, quarantines - 1)
            breaker.quarantine(now)
            self._expelled[node] = breaker

    def _changed(self) -> None:
        self.replicated = len(set(self.bits.values())) < len(self.bits)
        self._roster = None

    @property
    def ready(self) -> bool:
        """Whether as many students as the quorum requires are up."""
        return self.students_up >= self.config.quorum

    @property
    def students_up(self) -> int:
        """Number of students that at least one node runs that is up."""
        return self.roster.students_up

    @property
    def all_up(self) -> bool:
        """Whether every node that a request would ask is up."""
        return self.roster.all_up

    @property
    def roster(self) -> Roster:
        """The nodes that requests ask now."""
        if self._roster is None:
            self._roster = roster_of(self.nodes, self.bits, self.config.quorum)
        return self._roster

    def state(self, node: str) -> str:
        """``unknown``, ``up``, ``suspect`` or ``out``."""
        return self.nodes[node].breaker.state

    def session(self, now: float, remaining_s: float | None = None, num_samples: int = 1) -> Session:
        """The session of a request that arrives now.

        Args:
            now: time, on any monotonic clock.
            remaining_s: time until the client's deadline; None if it has none.
            num_samples: number of its samples; nodes that state that they accept fewer are left out.

        Returns:
            A session that asks the nodes that are not out, one of each student. Below the quorum it asks
            all nodes, since there is nothing to lose. If the client's deadline leaves no time, it asks none.
        """
        roster, deadline_s = self.roster, self.config.deadline_s
        if remaining_s is not None and remaining_s - self.config.fusion_budget_s < deadline_s:
            deadline_s = remaining_s - self.config.fusion_budget_s
            if deadline_s <= 0:
                return Session(self, (), {}, now, 0.0, below_quorum=False)
        ask, spares = roster.ask, dict[int, tuple[str, ...]]()
        if not ask:
            chosen = [self._by_load(group, num_samples) for group in roster.groups]
            ask = tuple(group[0] for group in chosen)
            spares = {self.bits[group[0]].bit_length() - 1: group[1:] for group in chosen if len(group) > 1}
        if self.stragglers or num_samples > roster.max_batch:
            ask = self._useful(ask, num_samples)
        for node in ask:
            self.nodes[node].pending += 1
        return Session(self, ask, spares, now, deadline_s, roster.below_quorum)

    def asked(self, node: str) -> bool:
        """A session asks one more node. Returns whether it may: the node is still in the cluster and not out."""
        if node not in self.nodes or self.state(node) == "out":
            return False
        self.nodes[node].pending += 1
        return True

    def dropped(self, node: str) -> None:
        """A request was given up before this node answered; the node's state does not change."""
        if node in self.nodes:
            self.nodes[node].pending -= 1

    def fell_behind(self, node: str) -> None:
        """A node is much later than the others: it is a straggler until a reply comes with theirs."""
        if node in self.nodes:
            self.stragglers.add(node)

    def cheap(self, mask: int, missing: int) -> bool:
        """Whether an answer of the students in ``mask`` loses at most ``early_loss`` without those in ``missing``."""
        accuracy, loss = self.accuracy, self.config.early_loss
        return bool(loss and accuracy) and accuracy[mask | missing] - accuracy[mask] <= loss + ROUNDING

    def on_success(
        self, node: str, latency_s: float, now: float, *, late: bool = False, lag_s: float = 0.0, num_samples: int = 1
    ) -> bool:
        """A node has answered a request.

        Args:
            node: the node that was asked; one that has left meanwhile is ignored.
            latency_s: time from asking to the reply.
            now: time of the reply, on any monotonic clock.
            late: whether the answer was given without it.
            lag_s: how much later than those of the other nodes it came.
            num_samples: number of samples of the request.

        Returns:
            Whether the state of the node has changed.
        """
        record = self.nodes.get(node)
        if record is None:
            return False
        record.pending -= 1
        record.asked += 1
        record.answered += not late
        record.latencies.add(latency_s)
        record.pace.add(num_samples, latency_s)
        if self.stragglers and lag_s <= self.config.patience_s:
            self.stragglers.discard(node)
        changed = record.breaker.on_success(now)
        return self._noted(changed) if changed else False

    def on_failure(self, node: str, waited_s: float, now: float, *, silent: bool = False, num_samples: int = 1) -> bool:
        """A node has failed a request; arguments and result as of ``on_success``.

        Args:
            node: that was asked.
            waited_s: time from asking to the failure.
            now: time of the failure.
            silent: whether nothing came until the deadline.
            num_samples: number of samples of the request; silence counts as any failure if so many take that long.
        """
        record = self.nodes.get(node)
        if record is None:
            return False
        record.pending -= 1
        record.asked += 1
        if silent and self._hurried(record, waited_s):
            return False
        silent = silent and record.pace.sample_s * num_samples < waited_s
        return self._noted(record.breaker.on_failure(now - waited_s, now, silent=silent))

    def on_contradiction(self, node: str, now: float) -> bool:
        """A node contradicts the others repeatedly and goes into quarantine; the result is that of ``on_success``."""
        record = self.nodes.get(node)
        return record is not None and self._noted(record.breaker.quarantine(now))

    def on_fault(self, node: str, now: float, *, out: bool = False) -> bool:
        """A node has failed in something other than one request; the result is that of ``on_success``.

        Args:
            node: its id.
            now: time of the failure.
            out: whether the node is out at once; as of ``Breaker.on_fault``.
        """
        record = self.nodes.get(node)
        return record is not None and self._noted(record.breaker.on_fault(now, out=out))

    def on_probe(self, node: str, ok: bool, latency_s: float, now: float) -> bool:
        """A probe has ended, with a good reply or without; arguments and result as of ``on_success``."""
        record = self.nodes.get(node)
        if record is None:
            return False
        if ok and not len(record.latencies):  # a probe's latency includes connecting, so requests' are preferred
            record.latencies.add(latency_s)
        if ok and record.breaker.failures:
            self.stragglers.discard(node)
        return self._noted(record.breaker.on_probe(ok, now - latency_s, now))

    def _noted(self, changed: bool) -> bool:
        if changed:
            self._roster = None
        return changed

    def max_batch(self, least: float) -> float:
        """Most samples of one request that the nodes accept, as they state; infinity without a limit.

        Args:
            least: a node that accepts fewer counts only if answers lose more than ``early_loss`` without it.
        """
        if self.roster.max_batch >= least:
            return self.roster.max_batch
        return -self._worst([(-self.nodes[n].max_batch, n) for group in self.roster.groups for n in group], -least)

    def accepts(self, node: str, max_batch: int) -> None:
        """A node states how many samples of one request it accepts."""
        if node in self.nodes and self.nodes[node].max_batch != max_batch:
            self.nodes[node].max_batch = max_batch
            self._roster = None

    def sample_s(self, tolerable_s: float) -> float:
        """Time per further sample of the slowest node that answers should wait for, in seconds.

        Args:
            tolerable_s: a node that takes longer counts only if answers lose more than ``early_loss`` without it.

        Returns:
            0 while nothing is known.
        """
        nodes = [n for group in self.roster.groups for n in group if n not in self.stragglers]
        return self._worst([(self.nodes[n].pace.sample_s, n) for n in nodes], tolerable_s)

    def _worst(self, costs: list[tuple[float, str]], tolerable: float) -> float:
        """Largest cost of a node, without those above ``tolerable`` whose loss is cheap; 0 without nodes."""
        costs.sort()
        everyone = self._mask([node for _, node in costs])
        while len(costs) > self.config.quorum and costs[-1][0] > tolerable:
            kept = self._mask([node for _, node in costs[:-1]])
            if not self.cheap(kept, everyone & ~kept):
                break
            costs.pop()
        return costs[-1][0] if costs else 0.0

    def latencies(self, node: str) -> Latencies:
        """The last latencies of a node."""
        return self.nodes[node].latencies

    def hedge_after_s(self, node: str) -> float:
        """How long a node may be silent before a replica is also asked; half the deadline without latencies."""
        record = self.nodes.get(node)
        if record is None:
            return 0.0
        return record.latencies.quantile(self.config.hedge_quantile) or self.config.deadline_s / 2

    def probes(self, now: float) -> tuple[str, ...]:
        """Nodes to probe now; each probe is under way until ``on_probe``."""
        due = tuple(node for node, record in self.nodes.items() if record.breaker.due(now))
        for node in due:
            self.nodes[node].breaker.probing = True
        return due

    def next_probe_s(self, now: float) -> float | None:
        """Time until the next probe is due; None while every node is up or being probed."""
        breakers = [record.breaker for record in self.nodes.values()]
        first = min((breaker.probe_at for breaker in breakers if not breaker.probing), default=inf)
        return None if first == inf else max(0.0, first - now)

    def _hurried(self, record: NodeRecord, waited_s: float) -> bool:
        """Whether the wait was too short for silence to be a failure."""
        usual_s = record.latencies.quantile(0.95) or inf
        return waited_s < min(self.config.deadline_s - self.config.fusion_budget_s, HURRY_FACTOR * usual_s)

    def _by_load(self, group: tuple[str, ...], num_samples: int) -> tuple[str, ...]:
        """Nodes of one student, by expected time of the answer; those that are not up or refuse the batch come last."""

        def expected(node: str) -> tuple[bool, bool, float]:
            record = self.nodes[node]
            unfit = record.breaker.failures > 0 or record.max_batch < num_samples
            return unfit, node in self.stragglers, (1 + record.pending) * record.latency_s

        return group if len(group) == 1 else tuple(sorted(group, key=expected))

    def _useful(self, ask: tuple[str, ...], num_samples: int) -> tuple[str, ...]:
        """The nodes to ask, without those that would refuse so many samples, unless the quorum needs them.

        Stragglers that have enough requests are left out too, if the answer loses little without them.
        """
        able = tuple(node for node in ask if self.nodes[node].max_batch >= num_samples)
        ask = able if len(able) >= self.config.quorum else ask
        kept = tuple(n for n in ask if n not in self.stragglers or self.nodes[n].pending < STRAGGLER_OPEN)
        if len(kept) == len(ask) or len(kept) < self.config.quorum:
            return ask
        mask, missing = self._mask(kept), self._mask(ask) & ~self._mask(kept)
        return kept if self.cheap(mask, missing) else ask

    def _mask(self, nodes: Sequence[str]) -> int:
        mask = 0
        for node in nodes:
            mask |= self.bits[node]
        return mask
