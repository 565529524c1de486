"""Drift alarm: detects a node whose replies are valid and in time but no longer agree with the others as built.

Stuck features, wrong weights or a drifting sensor pass every check of a reply, but not a comparison with the other
nodes. The features of one node alone order the classes (the fusion head of the set {i}), those of the other nodes
together give one class; the alarm watches the *rank* of that class in the node's order, in bins of doubling size. The
distribution of ranks, for each class, is counted on the recorded test features of the bundle; live, a cumulative sum
(CUSUM) of log-likelihood ratios tests for each node

    p₀(rank | class), as built    against    p₁ = (p₀ + chance) / 2, half of its information lost.

- The others' class is the maximum of the sum of their separate votes, each limited to ``baseline.CAP`` standard
  deviations as built: a bad node cannot outvote the good ones, no matter how large its features are.
- Ranks are compared given the class, so a camera that sees only cats is no drift. p₀ already allows a loss of
  ``baseline.TOLERANCE``, and more for a class with few samples in the test split.
- The mean time to a false alarm of a CUSUM with threshold h is at least e^h samples (Lorden 1971, "Procedures for
  reacting to a change in distribution"). h follows from the false alarms a day that the operator accepts.
- A bad node also lowers the scores of the others a little, so the node that crosses the threshold may not be the cause.
  The alarm names the node without which the others agree as built over the samples since then. If there is no such
  node, the inputs changed or several nodes went bad: the alarm then names no node.

Limits: at least four answering nodes; a node that lost less than about two fifths of its information is not detected;
inputs that are similar for minutes are not independent samples, though exact repeats are skipped. Pure logic: no clock,
no threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.monitoring.baseline import Baseline
from nonn.bundle import Bundle
from nonn.reliability.subsets import mask_of
from nonn.toml import check
from nonn.toml.constraints import Positive

__all__ = ["Baseline", "DriftConfig", "DriftNotice", "DriftWatch", "NodeDrift"]

FloatArray = NDArray[np.float64]
Float32 = NDArray[np.float32]

SECONDS_A_DAY = 86_400
# With two nodes that differ, either may be wrong; with three, a good one compared with a bad one looks as bad.
MIN_NODES = 4
QUIET_SAMPLES = 10_000  # before "the inputs changed" is repeated: a quarter of an hour at full rate
REMEMBERED = 512  # samples to find the bad node with
REPEATS = 32  # inputs that are remembered, so that a still image is not many samples
SMOOTHING = 0.05  # weight of the newest sample in the agreement that is shown


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """Options of the drift alarm.

    Raises:
        ConfigError: a value is invalid; the message names it.
    """

    samples_per_s: Annotated[Positive, "most samples per second that are tested"] = 10.0
    false_alarms_per_day: Annotated[Positive, "most false alarms of the whole cluster while its nodes are as built"] = (
        0.001
    )

    def __post_init__(self) -> None:
        check(self)

    def threshold(self, num_nodes: int) -> float:
        """The threshold of each node's CUSUM."""
        samples_a_day = self.samples_per_s * SECONDS_A_DAY
        return max(1.0, log(max(1, num_nodes) * samples_a_day / self.false_alarms_per_day))


@dataclass
class NodeDrift:
    """Record of one node.

    Attributes:
        score: CUSUM towards an alarm or, during one, towards its end.
        rising: samples since the score was last 0.
        alarm: whether the node has gone bad.
        samples: number of samples that it was tested with.
        agreement: how often it puts the others' class first, smoothed.
        expected: how often it did as built, smoothed.
    """

    score: float = 0.0
    rising: int = 0
    alarm: bool = False
    samples: int = 0
    agreement: float = 1.0
    expected: float = 1.0


@dataclass(frozen=True)
class DriftNotice:
    """A change to report.

    Attributes:
        kind: ``alarm`` a node has gone bad, ``clear`` it is good again, ``inputs`` most nodes are not as built.
        node: id; empty for ``inputs``.
        reason: reason in a few words.
    """

    kind: Literal["alarm", "clear", "inputs"]
    node: str
    reason: str


_Nodes = tuple[tuple[str, int], ...]  # id and device number
_Sample = tuple[_Nodes, Float32]  # nodes, and the logits of each alone [V, 1, K]


@dataclass
class DriftWatch:
    """Tests the nodes of a cluster, one sample at a time.

    Attributes:
        bundle: the bundle that they run.
        baseline: how they answered as built.
        config: options of the alarm.
        nodes: records by node id.
    """

    bundle: Bundle
    baseline: Baseline
    config: DriftConfig = field(default_factory=DriftConfig)
    nodes: dict[str, NodeDrift] = field(default_factory=dict)
    _seen: deque[int] = field(default_factory=lambda: deque(maxlen=REPEATS))
    _samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _quiet: int = 0

    def forget(self, node: str) -> None:
        """Forgets a node that has left; a later one with the same id is tested with its own samples only."""
        self.nodes.pop(node, None)
        for index, (nodes, logits) in enumerate(self._samples):
            stay = [i for i, (other, _) in enumerate(nodes) if other != node]
            self._samples[index] = tuple(nodes[i] for i in stay), logits[stay]

    def observe(self, sample: Mapping[str, tuple[int, NDArray[Any]]]) -> list[DriftNotice]:
        """Tests every node with one sample.

        Args:
            sample: node id → its device number and its features of the same input [d_i].

        Returns:
            Changes to report, mostly none.
        """
        repeat = hash(tuple(row.tobytes() for _, row in sample.values()))
        if repeat in self._seen or len(sample) < MIN_NODES:
            return []
        self._seen.append(repeat)
        devices, head = [device for device, _ in sample.values()], self.bundle.head
        logits = np.stack([head.logits({device: row[None]}) for device, row in sample.values()]).astype(np.float32)
        self._samples.append((tuple(zip(sample, devices, strict=True)), logits))
        for node, judged in self._compare(*self._samples[-1]).items():
            self._judge(node, *(float(values[0]) for values in judged))
        self._quiet = max(0, self._quiet - 1)
        threshold = self.config.threshold(len(sample))
        crossed = [node for node in self.nodes if self.nodes[node].score >= threshold]
        # The first finding may clear the score of the next node.
        notices = (self._notice(node) for node in crossed if self.nodes[node].score >= threshold)
        return [notice for notice in notices if notice]

    def _compare(
        self, nodes: _Nodes, logits: Float32, without: str = ""
    ) -> dict[str, tuple[FloatArray, NDArray[np.bool_], FloatArray]]:
        """Compares each of some nodes with the others.

        Args:
            nodes: id and device number of each.
            logits: logits of each node alone [V, n, K].
            without: a node to leave out.

        Returns:
            For each node that can be tested: log-likelihood ratios [n], whether it puts the others' class first [n],
            and the probability of that as built [n].
        """
        # A node that has gone bad is tested, but has no vote: it would distort the tests of the others.
        voters = [i for i, (node, _) in enumerate(nodes) if node != without and not self._alarm(node)]
        bounded = self.baseline.bounded((nodes[i][1] for i in voters), logits[voters])
        together, found = bounded.sum(axis=0), {}
        for index, (node, device) in enumerate(nodes):
            others = mask_of(nodes[i][1] for i in voters if i != index)
            if node == without or not others or not (expected := self.baseline.expect(device, others)):
                continue
            own = bounded[voters.index(index)] if index in voters else 0.0
            classes = (together - own).argmax(axis=1)
            bins = self.baseline.bins(logits[index], classes)
            found[node] = expected.ratio[classes, bins], bins == 0, expected.first[classes]
        return found

    def _alarm(self, node: str) -> bool:
        return node in self.nodes and self.nodes[node].alarm

    def _judge(self, node: str, ratio: float, first: float, expected: float) -> None:
        """One step of a node's CUSUM."""
        record = self.nodes.setdefault(node, NodeDrift())
        record.samples += 1
        weight = max(SMOOTHING, 1 / record.samples)
        record.agreement += weight * (first - record.agreement)
        record.expected += weight * (expected - record.expected)
        record.score = max(0.0, record.score + (-ratio if record.alarm else ratio))
        record.rising = record.rising + 1 if record.score else 0

    def _notice(self, node: str) -> DriftNotice | None:
        """The finding for a score beyond the threshold."""
        ends, cause = self.nodes[node].alarm, node
        if not ends:
            cause = self._find_cause(self.nodes[node].rising)
            # Until now they were compared with a bad node, or tested with inputs that say nothing about nodes.
            for record in self.nodes.values():
                record.score = record.score if record.alarm else 0.0
        if not cause:
            reported, self._quiet = self._quiet > 0, QUIET_SAMPLES
            reason = "most nodes agree less than as built: inputs differ from the test data, or several nodes went bad"
            return None if reported else DriftNotice("inputs", "", reason)
        record = self.nodes[cause]
        record.alarm, record.score = not ends, 0.0
        reason = f"agrees with the others in {record.agreement:.0%} of samples, {record.expected:.0%} as built"
        return DriftNotice("clear" if ends else "alarm", cause, reason)

    def _find_cause(self, num_samples: int) -> str:
        """The node without which the others agree best; empty if most of them still disagree.

        Args:
            num_samples: number of the last samples to use.
        """
        groups: dict[_Nodes, list[Float32]] = {}
        for nodes, logits in list(self._samples)[-num_samples:]:
            groups.setdefault(nodes, []).append(logits)
        joined = [(nodes, np.concatenate(logits, axis=1)) for nodes, logits in groups.items()]
        best, least, sound = "", inf, False
        for candidate in [node for node, record in self.nodes.items() if not record.alarm]:
            evidence: dict[str, float] = {}
            for nodes, logits in joined:
                for node, (ratio, _, _) in self._compare(nodes, logits, without=candidate).items():
                    if not self._alarm(node):
                        evidence[node] = evidence.get(node, 0.0) + float(ratio.sum())
            if evidence and sum(evidence.values()) < least:
                best, least = candidate, sum(evidence.values())
                sound = 2 * sum(value < 0 for value in evidence.values()) > len(evidence)
        return best if sound else ""
