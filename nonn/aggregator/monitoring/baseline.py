"""Reference of the drift alarm: how the nodes of a bundle answered when they were built.

Counted on the recorded test features: for each node and each set of other nodes, how the node ranks the class that the
others agree on. ``nonn.aggregator.monitoring.drift`` has the method and its limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.bundle.manifest import FEATURES
from nonn.reliability.subsets import members

__all__ = ["Baseline", "Expectation"]

FloatArray = NDArray[np.float64]
Float32 = NDArray[np.float32]
IntArray = NDArray[np.int64]

CAP = 2.0
TOLERANCE = 0.1
PRIOR_SAMPLES = 10  # weight of a node's ranks over all classes in its ranks of one class
# Nats per sample that a node with random answers must yield; below, an alarm would take thousands of samples.
MIN_INFORMATION = 0.01
MAX_RECORDED = 4_000_000  # stored logits, 16 MB
CACHED_BASELINES = 1024  # of (node, other nodes)


@dataclass(frozen=True, eq=False)
class Expectation:
    """What is expected of one node, given a set of other nodes.

    Attributes:
        ratio: log-likelihood ratio of going bad, for each class of the others and bin of ranks [K, R].
        first: probability that the node puts the others' class first, for each class [K].
    """

    ratio: FloatArray
    first: FloatArray


class Baseline:
    """How each node answered when it was built.

    Args:
        logits: logits of each device alone for the recorded samples [N, n, K].
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
        """Builds it from the test features in a bundle.

        Raises:
            BundleError: the bundle was written without features.
        """
        arrays, head = bundle.arrays(FEATURES), bundle.head
        num = max(1, MAX_RECORDED // (head.num_devices * head.num_classes))
        logits = [head.logits({i: arrays[f"device_{i}"][:num]}) for i in range(head.num_devices)]
        return cls(np.stack(logits).astype(np.float32))

    def bounded(self, devices: Iterable[int], logits: Float32) -> Float32:
        """Votes of some devices for the class that they agree on.

        Args:
            devices: the V devices.
            logits: logits of each device alone [V, n, K].

        Returns:
            Deviations from the mean as built, at most ``CAP`` standard deviations [V, n, K].
        """
        which = list(devices)
        cap = self._cap[which][:, None]
        result: Float32 = np.clip(logits - self._mean[which][:, None], -cap, cap)
        return result

    def bins(self, own: Float32, others: IntArray) -> IntArray:
        """Bins of the ranks that a node gives to classes; ties rank the class last.

        Args:
            own: the node's logits [n, K].
            others: the others' classes [n].
        """
        ranks = (own >= own[np.arange(len(own)), others][:, None]).sum(axis=1) - 1
        bins: IntArray = self._bin[ranks]
        return bins

    def expect(self, device: int, rest: int) -> Expectation | None:
        """What is expected of a device, given other devices.

        Args:
            device: the device to test.
            rest: mask of the other devices.

        Returns:
            None if its ranks would give too little evidence.
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
