"""Suspicion: accumulates evidence over requests that a node lies, until it is certain enough to stop asking it.

One request shows only large lies. A node that lies a little, or in one request of twenty, is found by the sum over
requests: a cumulative sum (CUSUM, Page 1954) of log-likelihood ratios for each node. Let q be the probability that an
honest node contradicts the others as much as it did in this request (``nonn.fusion.consistency``). For an honest node q
is uniform on [0, 1]; for a liar it is taken as

    p₁(q) = 1 − ε + ε a q^(a−1)        ε = 0.05 of its requests are lies, a = 0.1: mostly blatant ones

so the score is ``S ← max(0, S + ln p₁(q))``. q is known below 0.1 only; above it, the mean of p₁ over [0.1, 1] is
used. q below 10⁻⁶ counts as 10⁻⁶, so that at least three requests are needed: no single input removes a node.

Threshold: a CUSUM with threshold h alarms without cause after e^h requests or more, on average (Lorden 1971).
h = ln(10⁶ N / 0.01) = 20.5 for eight nodes: in 10⁶ requests an honest node is quarantined with a probability of at most
1 %, as far as q is correct.

Two cases in which q is not correct:

- Inputs that repeat, such as a still image: evidence about one input counts once. A request counts only if its
  consensus differs from those of the last requests that counted.
- Inputs unlike the data raise the scores of many nodes. A node is quarantined only while those under suspicion (half of
  the threshold or more) and those in quarantine are less than half of all.

Pure logic: no clock, no threads.

References: Page 1954, "Continuous inspection schemes"; Lorden 1971, "Procedures for reacting to a change in
distribution"; Wald 1945 for the ratio test.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Suspicion", "evidence"]

EPSILON, SHAPE = 0.05, 0.1  # ε and a
KNOWN_BELOW = 0.1
LEAST = 1e-6  # of q
REQUESTS, P_FALSE = 1e6, 0.01
REPEATS = 8  # requests with which a new one is compared
_UNKNOWN = math.log(1 - EPSILON + EPSILON * (1 - KNOWN_BELOW**SHAPE) / (1 - KNOWN_BELOW))  # evidence of q above it
NOVEL = 0.1  # least distance of its consensus from theirs, over the standard deviation of estimates


def evidence(surprise: float) -> float:
    """Log-likelihood ratio of lying for one request.

    Args:
        surprise: q, the probability that an honest node contradicts the others as much; in [0, 1].
    """
    if surprise >= KNOWN_BELOW:
        return _UNKNOWN
    return math.log(1 - EPSILON + EPSILON * SHAPE * max(surprise, LEAST) ** (SHAPE - 1))


class Suspicion:
    """Scores of the nodes of a cluster.

    Attributes:
        scores: CUSUM of each node, by id.
    """

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}
        self._seen: deque[NDArray[Any]] = deque(maxlen=REPEATS)

    def observe(
        self, surprise: Mapping[str, float], consensus: NDArray[Any], quarantined: Collection[str]
    ) -> list[str]:
        """Adds one request.

        Args:
            surprise: node id → q.
            consensus: what the nodes agree on [K], in standard deviations.
            quarantined: nodes that are in quarantine already.

        Returns:
            Nodes to quarantine now, mostly none; their scores start again at 0.
        """
        if self._repeats(consensus):
            return []
        for node, q in surprise.items():
            self.scores[node] = max(0.0, self.scores.get(node, 0.0) + evidence(q))
        if max(self.scores.values(), default=0.0) < self.threshold(len(self.scores)):
            return []
        return self._settle(quarantined)

    @staticmethod
    def threshold(num_nodes: int) -> float:
        """The score h at which a node is quarantined."""
        return math.log(REQUESTS * max(1, num_nodes) / P_FALSE)

    def forget(self, node: str) -> None:
        """Forgets a node that has left."""
        self.scores.pop(node, None)

    def _repeats(self, consensus: NDArray[Any]) -> bool:
        """Whether a request is too similar to one of the last that counted; if not, it is remembered."""
        if self._seen:
            difference = np.array(self._seen) - consensus
            if np.einsum("rk,rk->r", difference, difference).min() < NOVEL**2 * len(consensus):
                return True
        self._seen.append(consensus)
        return False

    def _settle(self, quarantined: Collection[str]) -> list[str]:
        """The nodes beyond the threshold, if they and others under suspicion are a minority."""
        h = self.threshold(len(self.scores))
        suspects = {node for node, score in self.scores.items() if score >= h / 2} | set(quarantined)
        if 2 * len(suspects) >= len(self.scores.keys() | set(quarantined)):
            return []
        found = [node for node, score in self.scores.items() if score >= h and node not in quarantined]
        for node in found:
            self.scores[node] = 0.0
        return found
