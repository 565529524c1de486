"""Devices that fail and are repaired: independent two-state Markov chains in continuous time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.laws.base import FirstPassage, FloatArray, TimedLaw
from nonn.reliability.laws.first_passage import simulated_first_passage
from nonn.reliability.laws.requests import Independent
from nonn.reliability.subsets import membership, probabilities

__all__ = ["MAX_FIRST_PASSAGE", "Markov"]

MAX_FIRST_PASSAGE = 12  # devices: 4,096 states, some 10 s; 13 would take eight times as long


class Markov(TimedLaw, Independent):
    """Up and down with exponential times.

    Args:
        mtbf_s: mean time that device i stays up before it fails, in seconds [N].
        mttr_s: mean time until it is repaired, in seconds [N].

    ``p`` is the share of time that a device is down in the long run, mttr / (mtbf + mttr).
    """

    kind = "markov"

    def __init__(self, mtbf_s: FloatArray, mttr_s: FloatArray, text: str = "") -> None:
        Independent.__init__(self, mttr_s / (mtbf_s + mttr_s), text)
        self.fail_rate, self.repair_rate = 1 / mtbf_s, 1 / mttr_s

    def probabilities_at(self, time_s: float) -> FloatArray:
        """Transient solution: p_down(t) = p (1 − exp(−(λ + μ) t))."""
        return probabilities(self.p * -np.expm1(-(self.fail_rate + self.repair_rate) * time_s))

    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """Mean first passage out of the good subsets, by eliminating one subset at a time; simulated beyond 12 devices.

        With rates q, ``h_i (Σ_j q_ij + leak_i) = t_i + Σ_j q_ij h_j`` over good subsets j ≠ i, where t = 1 and leak is
        the rate into bad subsets. Times beyond 10^16 steps are usual, where a linear solver loses every digit, even the
        sign. Elimination that only adds positive numbers loses none.

        Source: Grassmann, Taksar, Heyman 1985, "Regenerative analysis and steady state distributions for Markov
        chains"; here extended by leaks and times.
        """
        n = self.num_devices
        if not good[-1]:
            return FirstPassage.certain(0.0)
        if good.all():
            return FirstPassage.certain(float("inf"))
        if n > MAX_FIRST_PASSAGE:
            return simulated_first_passage(self.fail_rate, self.repair_rate, good)
        # Rare subsets are eliminated first; the full one remains. Rates connect subsets one device apart, so a step
        # affects subsets of its own size and the next: [place + 1, reach) covers both.
        sizes = membership(n).sum(axis=1)
        kept = np.flatnonzero(good)
        kept = kept[np.argsort(sizes[kept], kind="stable")]
        reach = np.searchsorted(sizes[kept], sizes[kept] + 1, side="right")
        place = np.full(len(good), -1)
        place[kept] = np.arange(len(kept))
        rates, leak, time_s = np.zeros((len(kept), len(kept))), np.zeros(len(kept)), np.ones(len(kept))
        for device in range(n):
            other = place[kept ^ (1 << device)]
            rate = np.where(kept >> device & 1, self.fail_rate[device], self.repair_rate[device])
            inside = other >= 0
            rates[np.flatnonzero(inside), other[inside]] = rate[inside]
            leak[~inside] += rate[~inside]
        for first, end in enumerate(reach[:-1].tolist()):
            rest = slice(first + 1, end)
            onward, into = rates[first, rest], rates[rest, first]
            share = into / (onward.sum() + leak[first])
            # A subset may return to itself; that diagonal is never read.
            rates[rest, rest] += np.outer(share, onward)
            leak[rest] += share * leak[first]
            time_s[rest] += share * time_s[first]
        return FirstPassage.certain(float(time_s[-1] / leak[-1]))
