"""Drift alarm: names a node that answers in time and in form, but no longer says what it said when it was built.

Stuck features, the wrong weights or a sensor that wanders pass every check of a reply. They do not pass the other
nodes. The features of one node alone give it an order of the classes (the fusion head of the set {i}), those of the
other nodes together give one class; the *rank* of that class in the node's order is what is watched, in bins of
doubling size. How ranks spread, for each class, is counted on the recorded test features of the bundle; live, a
cumulative sum (CUSUM) of log-likelihood ratios tests for each node

    p₀(rank | class), as built    against    p₁ = (p₀ + chance) / 2, half of what it knew is gone.

- The others' class is that of the sum of what each says alone, and no node may say more than ``baseline.CAP`` standard
  deviations as built: a bad node cannot outvote the good ones, however large its features are.
- Given the class, so that a camera that sees only cats is no drift. p₀ already grants a loss of ``baseline.TOLERANCE``,
  and more for a class of which the test split has few samples.
- The mean time to a false alarm of a CUSUM with threshold h is at least e^h samples (Lorden 1971, "Procedures for
  reacting to a change in distribution"). h follows from the false alarms a day that the operator accepts.
- A bad node spoils the judgement of its neighbours a little, so who crosses the threshold need not be the culprit.
  Named is the node without which the others, over the samples since then, agree as built. If there is none, the inputs
  changed or several nodes went bad: that is told without naming anybody.

Limits: at least four answering nodes; a node that lost less than about two fifths of what it knew stays unnamed; inputs
that are alike for minutes are not independent samples, though one that is repeated exactly is skipped. Pure logic: no
clock, no threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.monitoring.baseline import Baseline
from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.subsets import mask_of

__all__ = ["Baseline", "DriftConfig", "DriftNotice", "DriftWatch", "NodeDrift"]

FloatArray = NDArray[np.float64]
Float32 = NDArray[np.float32]

SECONDS_A_DAY = 86_400
# Of two nodes that differ nobody knows which is wrong; of three, a good one that leans on a bad one looks as bad.
MIN_NODES = 4
QUIET_SAMPLES = 10_000  # before "the inputs changed" is said again: a quarter of an hour at full rate
REMEMBERED = 512  # samples to find the culprit by
REPEATS = 32  # inputs that are remembered, so that a still picture is not many samples
SMOOTHING = 0.05  # of the newest sample in the agreement that people are shown


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """What the operator decides.

    Attributes:
        samples_per_s: at most so many samples are judged.
        false_alarms_per_day: of the whole cluster, at most, while its nodes are as built.
    """

    samples_per_s: float = 10.0
    false_alarms_per_day: float = 0.001

    def __post_init__(self) -> None:
        for name in ("samples_per_s", "false_alarms_per_day"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be a positive number")

    def threshold(self, num_nodes: int) -> float:
        """The threshold of each node's CUSUM."""
        samples_a_day = self.samples_per_s * SECONDS_A_DAY
        return max(1.0, log(max(1, num_nodes) * samples_a_day / self.false_alarms_per_day))


@dataclass
class NodeDrift:
    """What is known of one node.

    Attributes:
        score: CUSUM; towards an alarm, or, while there is one, towards its end.
        rising: samples since the score was last 0.
        alarm: whether the node has gone bad.
        samples: that it was judged by.
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
    """Something to tell people.

    Attributes:
        kind: ``alarm`` a node has gone bad, ``clear`` it is well again, ``inputs`` most nodes are unlike they were.
        node: id; empty for ``inputs``.
        reason: in a few words.
    """

    kind: Literal["alarm", "clear", "inputs"]
    node: str
    reason: str


_Nodes = tuple[tuple[str, int], ...]  # id and device number
_Sample = tuple[_Nodes, Float32]  # and the logits of each alone [V, 1, K]


@dataclass
class DriftWatch:
    """Judges the nodes of a cluster, one sample at a time.

    Attributes:
        bundle: that they run.
        baseline: what they said as built.
        config: what the operator decides.
        nodes: what is known of each, by id.
    """

    bundle: Bundle
    baseline: Baseline
    config: DriftConfig = field(default_factory=DriftConfig)
    nodes: dict[str, NodeDrift] = field(default_factory=dict)
    _seen: deque[int] = field(default_factory=lambda: deque(maxlen=REPEATS))
    _samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _quiet: int = 0

    def forget(self, node: str) -> None:
        """A node has left; one that comes under its id is judged, and blamed, by its own samples alone."""
        self.nodes.pop(node, None)
        for index, (nodes, logits) in enumerate(self._samples):
            stay = [i for i, (other, _) in enumerate(nodes) if other != node]
            self._samples[index] = tuple(nodes[i] for i in stay), logits[stay]

    def observe(self, sample: Mapping[str, tuple[int, NDArray[Any]]]) -> list[DriftNotice]:
        """Judges every node by one sample.

        Args:
            sample: node id → its device number and what it sent for one and the same input [d_i].

        Returns:
            What people should be told, mostly nothing.
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
        # The first may clear the score of the next.
        notices = (self._notice(node) for node in crossed if self.nodes[node].score >= threshold)
        return [notice for notice in notices if notice]

    def _compare(
        self, nodes: _Nodes, logits: Float32, without: str = ""
    ) -> dict[str, tuple[FloatArray, NDArray[np.bool_], FloatArray]]:
        """Compares each of some nodes with the others.

        Args:
            nodes: id and device number of each.
            logits: of each alone [V, n, K].
            without: a node to leave out.

        Returns:
            For each node that can be judged the log-likelihood ratios [n], whether it puts the others' class first [n],
            and how likely that was as built [n].
        """
        # A node that has gone bad is judged, but has no say: it would spoil the judgement of the others.
        says = [i for i, (node, _) in enumerate(nodes) if node != without and not self._alarm(node)]
        bounded = self.baseline.bounded((nodes[i][1] for i in says), logits[says])
        together, found = bounded.sum(axis=0), {}
        for index, (node, device) in enumerate(nodes):
            others = mask_of(nodes[i][1] for i in says if i != index)
            if node == without or not others or not (expected := self.baseline.expect(device, others)):
                continue
            own = bounded[says.index(index)] if index in says else 0.0
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
        """What a score beyond the threshold means."""
        ends, culprit = self.nodes[node].alarm, node
        if not ends:
            culprit = self._culprit(self.nodes[node].rising)
            # Until now they were judged beside a bad node, or by inputs that say nothing about nodes.
            for record in self.nodes.values():
                record.score = record.score if record.alarm else 0.0
        if not culprit:
            told, self._quiet = self._quiet > 0, QUIET_SAMPLES
            reason = "most nodes agree less than as built: inputs unlike the test data, or several went bad"
            return None if told else DriftNotice("inputs", "", reason)
        record = self.nodes[culprit]
        record.alarm, record.score = not ends, 0.0
        reason = f"agrees with the others in {record.agreement:.0%} of samples, as built in {record.expected:.0%}"
        return DriftNotice("clear" if ends else "alarm", culprit, reason)

    def _culprit(self, num_samples: int) -> str:
        """The node without which the others agree best; empty if most of them still disagree.

        Args:
            num_samples: how many of the last samples to look at.
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
