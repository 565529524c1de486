"""Drift alarm: names a node that answers in time and in form, but no longer says what it said when it was built.

Stuck features, the wrong weights or a sensor that wanders pass every check of a reply. They do not pass the other
nodes. The features of one node alone give it an order of the classes (the fusion head of the set {i}), those of the
other nodes together give one class; the *rank* of that class in the node's order is what is watched, in bins of
doubling size. How ranks spread, for each class, is counted on the recorded test features of the bundle; live, a
cumulative sum (CUSUM) of log-likelihood ratios tests for each node

    p₀(rank | class), as built    against    p₁ = (p₀ + chance) / 2, half of what it knew is gone.

- The others' class is that of the sum of what each says alone, and no node may say more than ``CAP`` standard
  deviations as built: a bad node cannot outvote the good ones, however large its features are.
- Given the class, so that a camera that sees only cats is no drift. p₀ already grants a loss of ``TOLERANCE``, and
  more for a class of which the test split has few samples.
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

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.subsets import mask_of, members

__all__ = ["Baseline", "DriftConfig", "DriftNotice", "DriftWatch", "NodeDrift"]

FloatArray = NDArray[np.float64]
Float32 = NDArray[np.float32]
IntArray = NDArray[np.int64]

SECONDS_A_DAY = 86_400
# Of two nodes that differ nobody knows which is wrong; of three, a good one that leans on a bad one looks as bad.
MIN_NODES = 4
CAP = 2.0
TOLERANCE = 0.1
PRIOR_SAMPLES = 10  # weight of a node's ranks over all classes in those of one class
# Nats a sample that a node which knows nothing any more must yield; below, an alarm would take thousands of samples.
MIN_INFORMATION = 0.01
MAX_RECORDED = 4_000_000  # logits that are kept, 16 MB
CACHED_BASELINES = 1024  # of (node, other nodes)
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


@dataclass(frozen=True, eq=False)
class Expectation:
    """What is expected of one node beside certain others.

    Attributes:
        ratio: log-likelihood ratio of going bad, for each class of the others and bin of ranks [K, R].
        first: probability that the node puts the others' class first, for each class [K].
    """

    ratio: FloatArray
    first: FloatArray


class Baseline:
    """What each node said when it was built.

    Args:
        logits: of each device alone for the recorded samples [N, n, K].
    """

    def __init__(self, logits: Float32) -> None:
        self._logits = logits
        self._mean = logits.mean(axis=1)  # [N, K]
        self._cap = CAP * logits.std(axis=(1, 2))[:, None]  # [N, 1]
        self.num_classes = logits.shape[2]
        ranks = np.arange(self.num_classes)
        self._bin = np.log2(ranks + 1).astype(np.int64)  # of each rank [K]
        self._chance = np.bincount(self._bin) / self.num_classes  # [R]
        self._known: OrderedDict[tuple[int, int], Expectation | None] = OrderedDict()

    @classmethod
    def of(cls, bundle: Bundle) -> Baseline:
        """From the test features in a bundle.

        Raises:
            BundleError: the bundle was written without features.
        """
        arrays, head = bundle.arrays("features.npz"), bundle.head
        num = max(1, MAX_RECORDED // (head.num_devices * head.num_classes))
        logits = [head.logits({i: arrays[f"device_{i}"][:num]}) for i in range(head.num_devices)]
        return cls(np.stack(logits).astype(np.float32))

    def bounded(self, devices: Iterable[int], logits: Float32) -> Float32:
        """What each of some devices contributes to a class that several agree on.

        Args:
            devices: the V devices.
            logits: of each alone [V, n, K].

        Returns:
            Deviations from the mean as built, at most ``CAP`` standard deviations [V, n, K].
        """
        which = list(devices)
        cap = self._cap[which][:, None]
        result: Float32 = np.clip(logits - self._mean[which][:, None], -cap, cap)
        return result

    def bins(self, own: Float32, others: IntArray) -> IntArray:
        """Bins of the ranks that a node gives to classes; equals count against it.

        Args:
            own: the node's logits [n, K].
            others: the others' classes [n].
        """
        ranks = (own >= own[np.arange(len(own)), others][:, None]).sum(axis=1) - 1
        bins: IntArray = self._bin[ranks]
        return bins

    def expect(self, device: int, rest: int) -> Expectation | None:
        """What is expected of a device beside others.

        Args:
            device: that is judged.
            rest: the others, a mask.

        Returns:
            None where its ranks would tell too little.
        """
        key = (device, rest)
        if key not in self._known:
            self._known[key] = self._count(device, [i for i in members(rest) if i != device])
            if len(self._known) > CACHED_BASELINES:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _count(self, device: int, others: list[int]) -> Expectation | None:
        classes = self.bounded(others, self._logits[others]).sum(axis=0).argmax(axis=1)
        counts = np.zeros((self.num_classes, len(self._chance)))
        np.add.at(counts, (classes, self.bins(self._logits[device], classes)), 1)
        num = counts.sum(axis=1, keepdims=True)
        overall = (counts.sum(axis=0) + 1) / (counts.sum() + len(self._chance))
        built = (counts + PRIOR_SAMPLES * overall) / (num + PRIOR_SAMPLES)
        tolerance = TOLERANCE + np.minimum(0.4, 1 / np.sqrt(num + 1))
        p0 = (1 - tolerance) * built + tolerance * self._chance
        ratio = np.log((p0 + self._chance) / 2 / p0)
        if float(np.log((overall + self._chance) / 2 / overall) @ self._chance) < MIN_INFORMATION:
            return None
        return Expectation(ratio, built[:, 0])


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
        """A node has left."""
        self.nodes.pop(node, None)

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
